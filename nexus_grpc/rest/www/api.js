// Talking to the server: every call ends in an answer or in an ApiError.

import { apiKey } from "./credential.js";

const TIMEOUT_MS = 65_000;

/** What went wrong: HTTP status (0: no answer at all), code as gRPC names it, details, request id. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "UNREACHABLE", details = [], requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, details, requestId });
  }

  get unreachable() {
    return this.status === 0;
  }
}

/**
 * One call. Resolves to {body, status, requestId, elapsedMs}; body is the decoded JSON.
 * Raises ApiError when there is no answer, when the status is 400 or above, or when the body is not JSON.
 */
export async function call(path, { method = "GET", json, accept = [] } = {}) {
  const started = performance.now();
  const options = { method, headers: { accept: "application/json" }, cache: "no-store" };
  const key = apiKey();
  if (key) options.headers["x-api-key"] = key;
  options.signal = AbortSignal.timeout(TIMEOUT_MS);
  if (json !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = typeof json === "string" ? json : JSON.stringify(json);
  }
  let response, text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch (failure) {
    const late = failure.name === "TimeoutError";
    throw new ApiError(late ? "The server took too long to answer." : "The server does not answer.");
  }
  const answer = {
    status: response.status,
    requestId: response.headers.get("x-request-id") ?? "",
    elapsedMs: performance.now() - started,
  };
  const refused = !response.ok && !accept.includes(response.status);
  try {
    answer.body = JSON.parse(text);
  } catch {
    if (!refused) throw new ApiError("The answer is not JSON.", { ...answer, code: "NOT_JSON" });
  }
  if (refused) throw refusal(answer, text);
  return answer;
}

function refusal({ status, requestId, body }, text) {
  const error = body?.error ?? {};
  return new ApiError(error.message || text.slice(0, 500) || `HTTP status ${status}`, {
    status,
    code: error.code || `HTTP ${status}`,
    details: error.details ?? [],
    requestId: body?.request_id || requestId,
  });
}

export const health = () => call("/health");
/** 503 is an answer here, too: it says that the server is not ready. */
export const ready = () => call("/ready", { accept: [503] });
/** All models, as /models/{id} tells of each. */
export const overview = () => call("/v1/overview");
export const predict = (request) => call("/predict", { method: "POST", json: request });

/**
 * A curl line for a POSIX shell. `body` is JSON text, or undefined for none; `form` a multipart form's fields instead.
 * Where the page has an API key the line takes one from the environment: lines are copied to places that keep them.
 */
export function curlLine(url, { method = "GET", body, form } = {}) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const verb = method === (form || body !== undefined ? "POST" : "GET") ? "" : `-X ${method} `;
  const parts = [`curl ${verb}${quoted(url)}`];
  if (apiKey()) parts.push('-H "x-api-key: $NEXUS_API_KEY"');
  if (form) parts.push(...Object.entries(form).map(([key, value]) => `-F ${quoted(`${key}=${value}`)}`));
  else if (body !== undefined) parts.push("-H 'content-type: application/json'", `-d ${quoted(body)}`);
  return parts.join(" \\\n  ");
}
