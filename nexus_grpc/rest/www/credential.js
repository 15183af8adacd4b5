// The API key that a person gives the page, and the field for it. It lives as long as the tab, and leaves it only as
// the header x-api-key, to this server: never in a URL, and never in the curl lines.

import { byId } from "./dom.js";

const STORED_AS = "nexus-api-key";
// Browsers can be told to keep no storage; then the key lasts until the page is loaded again.
let kept = "";

/** The key, "" for none. */
export function apiKey() {
  try {
    return sessionStorage.getItem(STORED_AS) ?? kept;
  } catch {
    return kept;
  }
}

function keep(key) {
  kept = key;
  try {
    if (key) sessionStorage.setItem(STORED_AS, key);
    else sessionStorage.removeItem(STORED_AS);
  } catch {
    // `kept` has it.
  }
}

/** Whether the server did not let this caller in, or not that far. */
export const isAboutCredentials = (error) => error.status === 401 || error.status === 403;

/** Where callers without a key may do something already, whoever has one must be able to say so. */
export function offerKey(auth) {
  byId("offer").hidden = auth === "off" || Boolean(apiKey()) || !byId("credential").hidden;
}

/** Show the field, and why. `error`: an ApiError with what the server said. */
export function askForKey(error) {
  const known = Boolean(apiKey());
  const titles = { 401: "The server does not accept this API key", 403: "This API key does not allow that" };
  byId("credential-title").textContent = known ? titles[error.status] : "This server needs an API key";
  byId("credential-why").textContent = known || error.status === 403 ? `The server says: ${error.message}` : "";
  byId("credential").hidden = false;
  byId("forget").hidden = !known;
  byId("offer").hidden = true;
}

/** `changed` is called whenever there is another key, or none any more. */
export function watchCredential(changed) {
  const tell = (key) => {
    keep(key);
    byId("api-key").value = "";
    byId("credential").hidden = true;
    byId("forget").hidden = !key;
    changed();
  };
  byId("credential-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("api-key").value.trim();
    // A header takes nothing else; fetch would refuse it in words of its own.
    const isSendable = /^[\x21-\x7e]+$/.test(key);
    byId("api-key").toggleAttribute("aria-invalid", !isSendable);
    if (isSendable) tell(key);
    else byId("credential-why").textContent = "This is no API key: it has characters that none has, or none at all.";
  });
  byId("offer").addEventListener("click", () => {
    byId("credential-title").textContent = "Use an API key";
    byId("credential-why").textContent = "Without one you may do here what anonymous callers may.";
    byId("credential").hidden = false;
    byId("offer").hidden = true;
    byId("api-key").focus();
  });
  byId("forget").addEventListener("click", () => tell(""));
  byId("forget").hidden = !apiKey();
}
