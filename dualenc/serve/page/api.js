// Requests to the server that this page came from. Whatever goes wrong is a Trouble that says what to do about it.

const BASE = new URL("./", document.baseURI);
const PATIENCE = 30000; // ms until a request is given up

/** kind: "offline" (no answer), "token", "wait" (come again in `wait` seconds), "refused" (the request is at fault) or "broken". */
export class Trouble extends Error {
  constructor(kind, title, detail = "", wait = 0, status = 0) {
    super(detail || title);
    Object.assign(this, { kind, title, detail, wait, status });
  }
}

export const address = (path) => new URL(path.replace(/^\//, ""), BASE).href;

/** JSON from `path`; body: sent as JSON by POST. Trouble, or the AbortError of `signal`. */
export async function ask(path, { body, signal } = {}) {
  const late = AbortSignal.timeout(PATIENCE);
  const options = { signal: signal ? AbortSignal.any([signal, late]) : late, credentials: "same-origin" };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  let response;
  try {
    response = await fetch(address(path), options);
    if (response.ok) return response.status === 204 ? null : JSON.parse(await response.text(), exact);
  } catch (error) {
    if (signal?.aborted) throw error;
    const why = late.aborted ? `It has not answered for ${PATIENCE / 1000} seconds.` : "It may have stopped, or the network is down.";
    throw new Trouble("offline", "The server does not answer", why);
  }
  throw await trouble(response);
}

/** For JSON.parse: an item's id as text, since it has 63 bits and a number of JavaScript 53; so are other integers above that. */
function exact(name, value, { source = String(value) } = {}) {
  if (typeof value !== "number") return value;
  const long = !Number.isSafeInteger(value) && /^-?\d+$/.test(source);
  return long || (name === "id" && "metadata" in this) ? source : value;
}

async function trouble(response) {
  const said = await response.json().catch(() => ({}));
  const { status } = response;
  const title = said.title || `The server answered ${status}`;
  if (said.detail) said.detail = said.detail[0].toUpperCase() + said.detail.slice(1);
  const wait = Math.min(30, Math.max(0.5, Number(response.headers.get("Retry-After")) || 2));
  if (status === 401) return new Trouble("token", title, said.detail, 0, status);
  if (status === 503 || status === 429) return new Trouble("wait", title, said.detail, wait, status);
  if (status === 502 || status === 504) return new Trouble("offline", "The server does not answer", "What stands before it got no reply.", 0, status);
  return new Trouble(status >= 500 ? "broken" : "refused", title, said.detail, 0, status);
}

export const indexes = (signal) => ask("indexes", { signal });
export const search = (body, signal) => ask("search", { body, signal });
export const item = (id, index, signal) => ask(`items/${id}${inIndex(index)}`, { signal });
export const similar = (id, index, k, signal) => ask(`items/${id}/similar${inIndex(index, { k })}`, { signal });
export const enter = (token) => ask("session", { body: { token } });

/** (D,) of one picture (base64). */
export async function embed(image, index, signal) {
  const { images } = await ask("embed", { body: { index, images: [image] }, signal });
  return images[0].map((value) => Number(value.toFixed(6))); // enough for a unit row, and half as long
}

/** A hit's picture, its longer side at most `size` pixels. */
export function picture(path, size) {
  const url = new URL(address(path));
  url.searchParams.set("size", size);
  return url.href;
}

export const itemPicture = (id, index, size) => picture(`items/${id}/image${inIndex(index)}`, size);

function inIndex(index, more = {}) {
  const query = new URLSearchParams(more);
  if (index) query.set("index", index);
  return query.size ? `?${query}` : "";
}
