// The page at /docs: /openapi.json made readable. How schemas read is in schemas.js.

import * as api from "./api.js";
import { breakable, byId, codeBlock, copyText, element, fill, folded, prose } from "./dom.js";
import { fieldRows, resolve, typeName } from "./schemas.js";
import { errorView } from "./views.js";

const METHODS = ["get", "post", "put", "patch", "delete"];
const JSON_TYPE = "application/json";
const FORM_TYPE = "multipart/form-data";

/** [{tag, operations: [{path, method, operation}]}], tags in the document's order. */
function groups(doc) {
  const byTag = new Map((doc.tags ?? []).map((tag) => [tag.name, { tag, operations: [] }]));
  for (const [path, item] of Object.entries(doc.paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const name = item[method].tags?.[0] ?? "Other";
      if (!byTag.has(name)) byTag.set(name, { tag: { name }, operations: [] });
      byTag.get(name).operations.push({ path, method, operation: item[method] });
    }
  }
  return [...byTag.values()].filter((group) => group.operations.length);
}

const anchor = (method, path) => `${method}-${path.replace(/[^a-z0-9]+/gi, "-").replace(/^-|-$/g, "")}`;

const badge = (method) => element("span", { class: `method ${method}` }, method.toUpperCase());

function contents(grouped) {
  const parts = [element("h2", {}, "Routes")];
  for (const { tag, operations } of grouped) {
    parts.push(element("h3", {}, tag.name));
    for (const { path, method } of operations) {
      const text = breakable(path);
      parts.push(element("a", { href: `#${anchor(method, path)}` }, `${method.toUpperCase()} `, ...text));
    }
  }
  return parts;
}

function intro(doc) {
  return element("section", { class: "panel" },
    element("h2", {}, `${doc.info.title} ${doc.info.version}`),
    doc.info.description ? element("p", { class: "text" }, ...prose(doc.info.description)) : null,
    element("p", {}, "The document itself: ", element("a", { href: "/openapi.json" }, "/openapi.json"),
      ` (OpenAPI ${doc.openapi}).`));
}

function section(doc, { tag, operations }) {
  return element("section", { class: "operations" },
    element("h2", {}, tag.name),
    tag.description ? element("p", { class: "text quiet" }, ...prose(tag.description)) : null,
    ...operations.map((one) => operationPanel(doc, one)));
}

function operationPanel(doc, { path, method, operation }) {
  const body = operation.requestBody && resolve(doc, operation.requestBody);
  const schema = (body?.content?.[JSON_TYPE] ?? body?.content?.[FORM_TYPE])?.schema;
  return element("article", { class: "panel operation", id: anchor(method, path) },
    element("h3", {}, badge(method), element("span", {}, ...breakable(path))),
    operation.description ? element("p", { class: "text" }, ...prose(operation.description)) : null,
    parameters(doc, operation.parameters ?? []),
    schema ? block(body.content[FORM_TYPE] ? "Form (multipart/form-data)" : "Request body", fields(doc, schema, true)) : null,
    responses(doc, operation.responses ?? {}),
    ...examples(doc, { path, method, operation, body }));
}

const block = (title, ...children) => element("div", {}, element("h4", {}, title), ...children);

function grid(headings, rows) {
  const head = element("tr", {}, ...headings.map((text) => element("th", { scope: "col" }, text)));
  const lines = rows.map((cells) => element("tr", {}, ...cells.map((cell) => element("td", {}, ...[cell].flat()))));
  return element("table", { class: "grid" }, element("thead", {}, head), element("tbody", {}, ...lines));
}

function parameters(doc, list) {
  const rows = list.map((one) => resolve(doc, one)).map((one) => [
    element("code", {}, one.name),
    `${typeName(doc, one.schema ?? {})} in the ${one.in}${one.required ? ", required" : ""}`,
    prose(one.description),
  ]);
  return rows.length ? block("Parameters", grid(["name", "type", "meaning"], rows)) : null;
}

/** `asked`: in a request, where it matters which fields are required. */
function fields(doc, schema, asked = false) {
  const rows = fieldRows(doc, schema).map(({ name, type, required, description }) =>
    [element("code", {}, name), asked && required ? `${type}, required` : type, prose(description)]);
  return rows.length ? grid(["field", "type", "meaning"], rows) : element("p", { class: "quiet" }, typeName(doc, schema));
}

function responses(doc, all) {
  const rows = [];
  let answer = null;
  for (const [status, reference] of Object.entries(all)) {
    const response = resolve(doc, reference);
    const types = Object.keys(response.content ?? {}).filter((type) => type !== JSON_TYPE);
    rows.push([element("code", {}, status), [...prose(response.description), ...types.map((type) => `, ${type}`)]]);
    if (status.startsWith("2")) answer = response.content?.[JSON_TYPE]?.schema ?? answer;
  }
  return block("Answers",
    answer ? folded("Fields of the answer", fields(doc, answer)) : null,
    folded(`Status codes: ${Object.keys(all).join(", ")}`, grid(["status", "meaning"], rows)));
}

/** Each example of the body (or of the parameters, for a GET) as a curl line. */
function examples(doc, { path, method, operation, body }) {
  const isForm = Boolean(body?.content?.[FORM_TYPE]);
  const named = Object.entries(body?.content?.[isForm ? FORM_TYPE : JSON_TYPE]?.examples ?? {});
  const requests = named.length ? named : [["", {}]];
  const url = location.origin + filledPath(doc, path, operation.parameters ?? []);
  return requests.map(([, example]) => {
    const text = example.value === undefined ? undefined : JSON.stringify(example.value);
    const sent = isForm ? { form: example.value } : { body: text };
    return exampleBlock(example.summary ?? "Example", api.curlLine(url, { method: method.toUpperCase(), ...sent }));
  });
}

function exampleBlock(title, line) {
  const button = element("button", { type: "button", "aria-label": `Copy the curl line of: ${title}` }, "Copy");
  button.addEventListener("click", () => copyText(line, button));
  return element("div", {},
    element("div", { class: "curl-head" }, element("h4", {}, title), button),
    codeBlock(line, `curl line: ${title}`));
}

/** The path with its parameters' examples in place, and required query parameters after it. */
function filledPath(doc, path, list) {
  const known = list.map((one) => resolve(doc, one));
  const query = known.filter((one) => one.in === "query" && one.required && one.example !== undefined);
  const filled = path.replace(/\{(\w+)\}/g, (whole, name) => {
    const example = known.find((one) => one.in === "path" && one.name === name)?.example;
    return example === undefined ? whole : encodeURIComponent(example);
  });
  const pairs = query.map((one) => `${encodeURIComponent(one.name)}=${encodeURIComponent(one.example)}`);
  return pairs.length ? `${filled}?${pairs.join("&")}` : filled;
}

async function start() {
  try {
    const { body: doc } = await api.call("/openapi.json");
    const grouped = groups(doc);
    fill(byId("toc"), ...contents(grouped));
    fill(byId("operations"), intro(doc), ...grouped.map((group) => section(doc, group)));
    // The fragment named an element that was not there yet when the browser looked for it.
    if (location.hash) byId(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
  } catch (error) {
    fill(byId("operations"), errorView(error));
  }
  byId("operations").setAttribute("aria-busy", "false");
}

start();
