// What the page shows of the server's answers. Each function makes nodes and changes nothing else.

import { codeBlock, element, facts, folded } from "./dom.js";
import { classes, tensorType } from "./rows.js";

const percent = (share) => (share > 0 && share < 0.0005 ? "< 0.1 %" : `${(share * 100).toFixed(1)} %`);
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(2) : ms.toFixed(0)} ms`;
const microseconds = (us) => (us < 1000 ? `${us} µs` : milliseconds(us / 1000));

/** 93784 → "1 d 2 h". */
export function duration(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size]) => seconds >= size));
  if (seconds < 1) return "under a second";
  let rest = Math.floor(seconds);
  const parts = units.slice(first, first + 2).map(([name, size]) => {
    const count = Math.floor(rest / size);
    rest -= count * size;
    return count ? `${count} ${name}` : "";
  });
  return parts.filter(Boolean).join(" ");
}

/** One word in a coloured pill, with a sentence beside it. `tone`: good, warn or bad. */
export function pill(tone, word, sentence = "") {
  return [element("span", { class: `pill ${tone}` }, word), sentence ? ` ${sentence}` : null];
}

/** A model of the list, as /v1/overview tells of it. */
export function modelCard(model, onChoose) {
  const title = element("button", { type: "button", class: "link", "data-model": model.id }, model.id);
  title.addEventListener("click", () => onChoose(model.id));
  const head = element("div", { class: "card-head" }, element("h3", {}, title), versionTags(model));
  return element("li", { class: "card" }, head, ...modelBody(model));
}

/** The version that answers requests which name none is the active one; others that are ready answer by their name. */
function versionTags({ versions = [], active_version: active }) {
  const tags = versions.filter(({ version }) => version).map(({ version, state, reason, circuit }) => {
    const isActive = state === "READY" && version === active;
    const said = [isActive ? "active" : "", state === "READY" ? "" : state.toLowerCase(), failing[circuit] ?? ""];
    const kind = isActive ? "tag active" : state === "READY" || state === "UNLOADED" ? "tag" : "tag bad";
    return element("span", { class: kind, title: reason || undefined }, [`v${version}`, ...said.filter(Boolean)].join(" "));
  });
  return element("span", {}, ...tags);
}

const failing = { open: "failing", half_open: "on trial" };

function modelBody({ versions = [], inputs, outputs }) {
  // That it is unloaded is its state, too.
  const reasons = versions.filter((one) => one.reason && one.reason !== one.state.toLowerCase());
  return [
    ...reasons.map((one) => element("p", { class: "quiet" }, one.version ? `v${one.version}: ${one.reason}` : one.reason)),
    inputs?.length ? tensors("Inputs", inputs) : null,
    outputs?.length ? tensors("Outputs", outputs) : null,
  ];
}

function tensors(title, list = []) {
  const shown = list.slice(0, 4).map((tensor) => tensorItem(tensor));
  if (list.length > 4) {
    const rest = element("ul", {}, ...list.slice(4).map((tensor) => tensorItem(tensor)));
    shown.push(element("li", {}, folded(`${list.length - 4} more`, rest)));
  }
  return element("div", { class: "tensors" }, element("h4", {}, title), element("ul", {}, ...shown));
}

const tensorItem = (tensor) =>
  element("li", {}, element("b", {}, tensor.name), " ", element("code", {}, tensorType(tensor)));

/** What /predict answered. */
export function answerView({ body, requestId, elapsedMs }) {
  const { label, names } = classes(body);
  const parts = [];
  if (label !== "") parts.push(headline(label, body));
  if (body.decision) parts.push(decision(body));
  if (body.probabilities?.length) parts.push(bars(body.probabilities, names));
  if (!body.labels?.length && body.prediction?.length > 1) parts.push(values(body.prediction));
  if (!parts.length) parts.push(element("p", { class: "quiet" }, "This model's first output is empty."));
  parts.push(element("dl", { class: "facts" }, ...facts(answerFacts(body, requestId, elapsedMs))));
  if (body.timing) parts.push(element("dl", { class: "facts timing" }, ...facts(timingFacts(body.timing))));
  parts.push(folded("The answer as JSON", codeBlock(JSON.stringify(body, null, 2), "The answer as JSON")));
  return parts;
}

// With a threshold the class need not be the one of the largest probability, which `confidence` is.
const headline = (label, body) =>
  element("p", { class: "label" },
    element("span", { class: "quiet" }, body.probabilities?.length ? "Class " : "Answer "),
    element("strong", { id: "label" }, label),
    body.probabilities?.length && !body.decision ? element("span", { class: "quiet" }, ` with ${percent(body.confidence ?? 0)}`) : null);

/** What the model's configuration makes of it, where that sets a threshold. */
const decision = (body) =>
  element("p", { class: "label" },
    element("span", { class: "quiet" }, "Decision "),
    element("strong", { id: "decision" }, body.decision),
    element("span", { class: "quiet" }, ` at the threshold ${body.threshold_used}`));

function bars(probabilities, names) {
  const largest = Math.max(...probabilities);
  const rows = probabilities.map((share, index) => {
    const fillBar = element("span", { class: "fill" });
    // Through the style object, not the attribute: the content security policy forbids style attributes.
    fillBar.style.width = `${Math.min(1, Math.max(0, share)) * 100}%`;
    return element("tr", { class: share === largest ? "best" : undefined },
      element("th", { scope: "row" }, names[index]),
      element("td", { class: "track", "aria-hidden": "true" }, fillBar),
      element("td", { class: "number" }, percent(share)));
  });
  return element("table", { class: "bars" }, element("caption", {}, "Probability per class"),
    element("tbody", {}, ...rows));
}

function values(numbers) {
  const shown = numbers.slice(0, 64).map((number) => String(Number(number.toPrecision(6)))).join(", ");
  return element("p", { class: "values" }, element("span", { class: "quiet" }, "Output "),
    element("code", {}, numbers.length > 64 ? `${shown}, … (${numbers.length} values)` : shown));
}

const answerFacts = (body, requestId, elapsedMs) => [
  ["in the server", body.latency_ms === undefined ? "" : milliseconds(body.latency_ms)],
  ["as this page saw it", milliseconds(elapsedMs)],
  ["version", body.model_version],
  ["variant", body.variant === "default" ? "" : body.variant],
  ["from cache", body.cache_hit ? "yes" : ""],
  ["request id", element("code", { id: "request-id" }, body.request_id || requestId)],
];

const timingFacts = (timing) => [
  ["queue", microseconds(timing.queue_us ?? 0)],
  ["inference", microseconds(timing.infer_us ?? 0)],
  ["total", microseconds(timing.total_us ?? 0)],
  ["rows in its batch", timing.batch_size ? String(timing.batch_size) : ""],
];

/** An ApiError, or any Error. */
export function errorView(error) {
  const pairs = [["code", error.code], ["HTTP status", error.status || ""], ["request id", error.requestId]];
  const known = pairs.map(([term, value]) => [term, value ? element("code", {}, String(value)) : ""]);
  const details = error.details?.length ? codeBlock(JSON.stringify(error.details, null, 2), "Details") : null;
  return element("div", { class: "notice bad", role: "alert" },
    element("p", {}, element("strong", {}, error.message)),
    element("dl", { class: "facts" }, ...facts(known)),
    details && folded("Details", details));
}
