// Small helpers for building the page. Whatever a server says goes in as text, never as HTML.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element. `attributes` are set as attributes; `class` too. Children are nodes, or text.
 * element("p", {class: "quiet"}, "no models")
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Put these children where the old ones were. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

/** A scrollable block of code that the keyboard reaches. */
export function codeBlock(text, label) {
  return element("pre", { tabindex: "0", role: "region", "aria-label": label }, element("code", {}, text));
}

/** Prose with `code` in it, as a list of nodes. */
export function prose(text = "") {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

/** A path that may break after its slashes. */
export function breakable(path) {
  return path.split(/(?<=\/)/).flatMap((part) => [part, document.createElement("wbr")]);
}

/** Something folded away under a summary. */
export function folded(summary, ...children) {
  return element("details", {}, element("summary", {}, summary), ...children);
}

/** Term and description pairs for a <dl>; pairs without a value are left out. */
export function facts(pairs) {
  return pairs
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value)));
}

/** Put `text` on the clipboard and say so on the button for a moment. */
export async function copyText(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // navigator.clipboard is missing on plain http away from localhost; the old way still works there.
    button.textContent = copyBySelection(text) ? "Copied" : "Not copied";
  }
  setTimeout(() => { button.textContent = said; }, 1500);
}

function copyBySelection(text) {
  const area = element("textarea", { class: "offscreen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
