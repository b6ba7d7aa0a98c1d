/** Calls to the service. A call is a plain value, so that the page can also show it as a curl command. */

/**
 * @typedef {object} Call
 * @property {string} path relative to the page, for instance "decode"
 * @property {Record<string, string | number>} [query]
 * @property {unknown} [json] body
 * @property {File} [file] body, an unchanged image file
 * @property {string} [accept] media type of the answer; JSON by default
 */

const KEY = "vaeserve-api-key";

/** Fired on `window` when the service requires an API key. */
export const UNAUTHORIZED = "vaeserve-unauthorized";

/** The reason for a failed call, as a sentence for users. */
export class Problem extends Error {
  /** @param {string} sentence @param {number} status 0 without an answer @param {number} wait seconds until the next try */
  constructor(sentence, status = 0, wait = 0) {
    super(sentence);
    this.status = status;
    this.wait = wait;
  }
}

/** @returns {string} the API key of this tab, empty without one */
export const apiKey = () => sessionStorage.getItem(KEY) ?? "";

/** @param {string} key */
export const setApiKey = (key) => sessionStorage.setItem(KEY, key);

/** @param {Call} call @returns {string} the whole URL */
export function address({ path, query = {} }) {
  const url = new URL(path, document.baseURI);
  url.search = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)])).toString();
  return url.href;
}

/**
 * @param {Call} call
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>} an answer with a status below 400; every other is thrown as a Problem
 */
export async function send(call, signal) {
  const { json, file, accept = "application/json" } = call;
  const headers = new Headers({ Accept: accept });
  if (apiKey()) headers.set("Authorization", `Bearer ${apiKey()}`);
  if (json !== undefined) headers.set("Content-Type", "application/json");
  if (file) headers.set("Content-Type", file.type);
  const body = file ?? (json === undefined ? undefined : JSON.stringify(json));
  let answer;
  try {
    answer = await fetch(address(call), { method: body === undefined ? "GET" : "POST", headers, body, signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem("The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) dispatchEvent(new Event(UNAUTHORIZED));
  const problem = await answer.json().catch(() => ({}));
  const sentence = problem.detail ?? `The service answered with status ${answer.status}.`;
  throw new Problem(sentence, answer.status, Number(answer.headers.get("Retry-After")));
}
