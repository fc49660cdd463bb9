// Asks for hits: the newest question wins, earlier requests are aborted, replies are kept for a while, and what failed for
// want of a server or of a loaded encoder is asked again by itself.

import * as api from "./api.js";
import { searches } from "./state.js";
import { row, upload } from "./uploads.js";
import { sql } from "./where.js";

const PAGE = 60; // hits of the first request
const NEXT = 120; // of those that follow
const KEPT = 40; // results that back, forward and retyping find at once
const FRESH = 300000; // ms: after that an answer is asked for again
const LONGEST_WAIT = 10; // seconds between attempts

/** What decides the hits: two states alike in this have the same ones. */
export const question = ({ index, q, terms, filters, where, group, labels }) =>
  JSON.stringify([index, q.trim(), terms, filters, where.trim(), group, labels.length > 1 ? labels : []]);

/** on: busy(bool), results(results), trouble(trouble, seconds until the next attempt or null), indexes(list). */
export class Search {
  #turn = 0; // of the question that counts
  #abort = new AbortController();
  #timer = 0;
  #kept = new Map(); // question -> results, the latest used last
  #attempts = 0;
  #paging = false;
  #state = null;
  #catalogue = null; // Promise of GET /indexes' list

  constructor(on) {
    this.on = on;
    this.current = null; // results that are shown
  }

  /** The indexes that the server has; asked for once, or anew. */
  indexes(anew = false) {
    if (anew || !this.#catalogue) {
      const asked = api.indexes().then((list) => (this.on.indexes(list), list));
      asked.catch(() => this.#catalogue === asked && (this.#catalogue = null));
      this.#catalogue = asked;
    }
    return this.#catalogue;
  }

  /** Find the hits of a state, after `delay` ms without another question. */
  ask(state, delay = 0) {
    this.#attempts = 0;
    this.#begin(state);
    const kept = this.#kept.get(question(state));
    if (kept && Date.now() - kept.at < FRESH) {
      this.on.busy(false);
      this.#show(kept);
    } else this.#timer = setTimeout(() => this.#run(), delay);
  }

  /** The same question again: the server is back, a token was given, somebody pressed the button. */
  again() {
    if (!this.#state) return;
    this.#begin(this.#state);
    this.#run();
  }

  #begin(state) {
    this.#turn += 1;
    this.#abort.abort();
    this.#abort = new AbortController();
    clearTimeout(this.#timer);
    this.#paging = false;
    this.#state = state;
  }

  async #run() {
    const [turn, state, { signal }] = [this.#turn, this.#state, this.#abort];
    this.on.busy(true);
    try {
      const body = await this.#body(state, signal);
      const reply = await api.search({ ...body, k: PAGE, offset: 0 }, signal);
      if (turn !== this.#turn) return;
      this.#attempts = 0;
      this.#show(this.#results(state, body, reply));
    } catch (error) {
      if (turn === this.#turn) this.#failed(error);
    } finally {
      if (turn === this.#turn) this.on.busy(false);
    }
  }

  async #body(state, signal) {
    const body = { index: state.index, terms: [] };
    if (state.q.trim()) body.terms.push({ weight: 1, text: state.q.trim() });
    for (const { kind, value, weight } of state.terms) {
      if (kind === "upload" && !upload(value)) continue;
      const named = kind === "upload" ? { embedding: await this.#row(value, state.index) } : { [kind === "url" ? "image_url" : kind]: value };
      body.terms.push({ weight, ...named });
    }
    signal.throwIfAborted();
    if (!body.terms.length) body.terms.push({ weight: 1, embedding: somewhere((await this.#index(state.index)).dim) });
    const filters = Object.keys(state.filters).length > 0;
    body.where = sql(state.filters, state.where, filters ? (await this.#index(state.index)).columns : []);
    if (state.group) body.group_by = state.group;
    if (state.labels.length > 1) body.labels = state.labels;
    return body;
  }

  async #row(id, index) {
    return row(id, index, (await this.#index(index)).fingerprint);
  }

  async #index(name) {
    const list = await this.indexes();
    const found = name ? list.find((index) => index.name === name) : list[0];
    if (!found) throw new api.Trouble("refused", `There is no index ${name} here`, `This server has ${list.map((index) => index.name).join(", ")}.`, 0, 404);
    return found;
  }

  #results(state, body, reply) {
    const { hits, next_offset: next, took_ms: took, ...about } = reply;
    return { ...about, hits, next, took: took?.total ?? null, body, browse: !searches(state), key: question(state), at: Date.now() };
  }

  #show(results) {
    for (const [key, kept] of this.#kept) if (kept.index === results.index && (kept.generation !== results.generation || kept.rows !== results.rows)) this.#kept.delete(key);
    this.#kept.delete(results.key);
    this.#kept.set(results.key, results);
    if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
    this.current = results;
    this.on.results(results);
  }

  #failed(error, retry = () => this.again()) {
    if (!(error instanceof api.Trouble)) throw error;
    if (error.kind === "offline") this.#kept.clear(); // who answers next may be another server
    const comesBack = error.kind === "offline" || error.kind === "wait";
    const wait = comesBack ? Math.min(LONGEST_WAIT, error.kind === "wait" ? error.wait : 2 ** this.#attempts++) : null;
    if (comesBack) this.#timer = setTimeout(retry, wait * 1000);
    this.on.trouble(error, wait);
  }

  /** The next page of what is shown, if there is one and it is not on its way. True when there is something to wait for. */
  async more() {
    const results = this.current;
    if (!results || results.next === null || this.#paging || results.key !== question(this.#state)) return;
    const turn = this.#turn;
    this.#paging = true;
    try {
      const reply = await api.search({ ...results.body, k: NEXT, offset: results.next }, this.#abort.signal);
      if (turn !== this.#turn) return;
      const known = new Set(results.hits.map((hit) => hit.id));
      results.hits.push(...reply.hits.filter((hit) => !known.has(hit.id))); // an approximate index may find one twice
      results.next = reply.hits.length ? reply.next_offset : null;
      this.#paging = false;
      this.#attempts = 0;
      this.on.results(results);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#paging = false;
      this.#failed(error, () => this.more());
    }
  }
}

/** (D,) unit: a direction that is always the same one. What lies there is a look around where nothing is searched for. */
function somewhere(dim) {
  let seed = 20;
  const random = () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return (seed + 1) / 2 ** 32;
  };
  const row = Array.from({ length: dim }, () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random()));
  const length = Math.hypot(...row);
  return row.map((value) => Number((value / length).toFixed(6)));
}
