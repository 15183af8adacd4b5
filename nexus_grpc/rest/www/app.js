// The page at /: server status, models, a form to predict with. Views are in views.js, the calls in api.js.

import * as api from "./api.js";
import { askForKey, isAboutCredentials, offerKey, watchCredential } from "./credential.js";
import { byId, copyText, element, facts, fill } from "./dom.js";
import { exampleRow, formKind, parseRow, rowText } from "./rows.js";
import { answerView, duration, errorView, modelCard, pill } from "./views.js";

const REFRESH_MS = 10_000;
const RETRY_MS = 2_000;

/**
 * Everything the page knows. models: what /v1/overview says of each; shown: that as text, as it was shown last; refused:
 * whether the server wants another key before it shows them; chosen: the model in the form; filled: the model whose
 * example the form got.
 */
const known = { models: [], shown: "", refused: false, chosen: "", filled: "" };

// ---- server status -------------------------------------------------------------------------------------------

async function refreshStatus() {
  let next = REFRESH_MS;
  try {
    const [health, ready] = await Promise.all([api.health(), api.ready()]);
    showStatus(health.body, ready);
    if (!known.refused && !document.hidden) await refreshModels();
  } catch (error) {
    next = RETRY_MS;
    showState("bad", error.unreachable ? "down" : "failing", `${error.message} Trying again …`);
    byId("facts").classList.add("stale");
  }
  setTimeout(refreshStatus, next);
}

/** Screen readers read a changed state aloud, so one that is as before is left alone. */
function showState(...said) {
  const place = byId("state");
  if (place.dataset.said === said.join()) return;
  place.dataset.said = said.join();
  fill(place, ...pill(...said));
}

function showStatus(health, ready) {
  if (ready.status === 200) showState("good", "ready");
  else showState("warn", "not ready", ready.body?.error?.message);
  fill(byId("facts"), ...facts(statusFacts(health)));
  byId("facts").classList.remove("stale");
  offerKey(health.auth ?? "off");
}

/** Every plain value of /health: what a later version adds shows up by itself. */
function statusFacts(health) {
  const hidden = new Set(["uptime_seconds", "timestamp", "status"]);
  const rest = Object.entries(health).filter(([name, value]) => !hidden.has(name) && typeof value !== "object");
  return [
    ["uptime", health.uptime_seconds === undefined ? "" : duration(health.uptime_seconds)],
    ...rest.map(([name, value]) => [name.replaceAll("_", " "), String(value)]),
  ];
}

// ---- models --------------------------------------------------------------------------------------------------

async function refreshModels() {
  try {
    const { body } = await api.overview();
    known.refused = false;
    takeModels(body.models ?? [], NO_MODELS);
  } catch (error) {
    if (isAboutCredentials(error)) {
      // Nothing to be tried again by itself: the next key does that.
      known.refused = true;
      takeModels([], NO_LIST);
      askForKey(error);
    } else if (error.unreachable) throw error;
    // The server is there, and this answer will come again: such as, to one who asks too often, "later".
    else showModelsFailure(error);
  }
}

const NO_MODELS = "No models are served. Put one into the model repository, or upload one: nexus models upload FILE --id NAME";
const NO_LIST = "The server shows them to callers with an API key for that.";

/** What is as it was is left alone: a repaint would close what somebody has opened. */
function takeModels(models, whyNone) {
  const text = JSON.stringify([models, whyNone]);
  if (text === known.shown) return;
  known.shown = text;
  known.models = models;
  showModels(whyNone);
  fillModelChoice();
}

function showModelsFailure(error) {
  known.shown = "";
  if (!known.models.length) fill(byId("models"), errorView(error));
  byId("models").setAttribute("aria-busy", "false");
}

function showModels(whyNone) {
  const list = known.models.map((model) => modelCard(model, choose));
  const none = element("p", { class: "quiet" }, whyNone);
  // A repaint must not take the focus from somebody who walks the list by keyboard.
  const focused = document.activeElement?.dataset?.model;
  fill(byId("models"), list.length ? element("ul", { class: "cards" }, ...list) : none);
  if (focused) byId("models").querySelector(`[data-model="${CSS.escape(focused)}"]`)?.focus();
  byId("models").setAttribute("aria-busy", "false");
  byId("model-count").textContent = list.length ? String(list.length) : "";
}

// ---- the form ------------------------------------------------------------------------------------------------

function fillModelChoice() {
  const ids = known.models.map((model) => model.id);
  fill(byId("model"), ...ids.map((id) => element("option", { value: id }, id)));
  byId("model").disabled = ids.length === 0;
  if (ids.length) setModel(ids.includes(known.chosen) ? known.chosen : ids.includes("iris") ? "iris" : ids[0]);
  else enableForm(false);
}

/** A click in the list: choose the model and go to the form. */
function choose(id) {
  setModel(id);
  byId("row").scrollIntoView({ block: "center" });
  byId("model").focus();
}

function setModel(id) {
  if (id !== known.chosen) fill(byId("answer"));
  known.chosen = id;
  byId("model").value = id;
  showChosen();
}

/** Versions and example of the chosen model. What a person has typed for it stays. */
function showChosen() {
  const info = chosenInfo();
  const before = byId("version").value;
  const ready = (info?.versions ?? []).filter((one) => one.state === "READY").map((one) => one.version);
  const options = ready.map((version) => element("option", { value: version }, version));
  const active = info?.active_version ? `active (v${info.active_version})` : "none is active";
  fill(byId("version"), element("option", { value: "" }, active), ...options);
  if (known.filled === known.chosen && ready.includes(before)) byId("version").value = before;
  byId("version").disabled = !info;
  enableForm(Boolean(info));
  if (info && known.filled !== known.chosen) fillForm();
}

const chosenInfo = () => {
  const info = known.models.find((model) => model.id === known.chosen);
  return info?.inputs?.length ? info : null;
};

const LABELS = {
  features: ["Features", "Numbers, separated by commas or spaces"],
  texts: ["Texts", "One text per line"],
  inputs: ["Inputs (JSON)", "By name: {\"shape\": […], \"data\": […]}, data flat in row-major order or nested"],
};

function fillForm() {
  const { inputs } = chosenInfo();
  const kind = formKind(inputs);
  const row = exampleRow(known.chosen, inputs);
  known.filled = known.chosen;
  byId("row-label").textContent = LABELS[kind][0];
  byId("row-help").textContent = Array.isArray(row) ? `${LABELS[kind][1]}: ${row.length} expected.` : LABELS[kind][1];
  byId("row").value = rowText(kind, row);
  byId("row").rows = kind === "inputs" ? Math.min(14, Object.keys(row).length + 2) : row.length > 16 ? 6 : 3;
  showCurl();
}

function enableForm(on) {
  for (const id of ["row", "send", "refill", "copy"]) byId(id).disabled = !on;
}

/** The body for /predict. Raises SyntaxError when the row is not what its kind asks for. */
function requestFromForm() {
  const kind = formKind(chosenInfo().inputs);
  const request = { model_id: known.chosen };
  if (byId("version").value) request.model_version = byId("version").value;
  request[kind] = parseRow(kind, byId("row").value);
  if (byId("timing").checked) request.nexus_timing = true;
  return request;
}

function showCurl() {
  try {
    const body = JSON.stringify(requestFromForm());
    byId("curl").textContent = api.curlLine(`${location.origin}/predict`, { method: "POST", body });
    byId("copy").disabled = false;
    byId("row").removeAttribute("aria-invalid");
  } catch (error) {
    byId("curl").textContent = error.message;
    byId("copy").disabled = true;
    byId("row").setAttribute("aria-invalid", "true");
  }
}

async function send(event) {
  event.preventDefault();
  const button = byId("send");
  if (button.getAttribute("aria-disabled") === "true") return;
  // Not `disabled`: that would throw the keyboard's focus away.
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Predicting …";
  try {
    fill(byId("answer"), ...answerView(await api.predict(requestFromForm())));
  } catch (error) {
    fill(byId("answer"), errorView(error));
    if (isAboutCredentials(error)) askForKey(error);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = "Predict";
  }
}

/** With another key, or none, the line is another; so may the models be. */
function showCurlAgain() {
  if (chosenInfo()) showCurl();
}

function showFailure(error) {
  showState("bad", error.unreachable ? "down" : "failing", error.message);
}

function start() {
  byId("predict").addEventListener("submit", send);
  byId("predict").addEventListener("input", showCurl);
  byId("model").addEventListener("change", (event) => setModel(event.target.value));
  byId("refill").addEventListener("click", fillForm);
  byId("copy").addEventListener("click", () => copyText(byId("curl").textContent, byId("copy")));
  byId("row").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("predict").requestSubmit();
  });
  watchCredential(() => refreshModels().then(showCurlAgain, showFailure));
  refreshStatus();
}

start();
