// The browser's history: a state for each step, steps of one kind in a row as one, and where the page was scrolled to.

import { read, write } from "./state.js";
import { upload } from "./uploads.js";

const PAUSE = 2000; // ms: typing that stops for so long is a step of its own
const places = new Map(); // number of a step -> how far it was scrolled down
let step = history.state?.step ?? 0;
let last = { kind: null, at: 0 };
history.scrollRestoration = "manual";

const kept = (state, number, opened) => [{ step: number, opened, terms: state.terms }, "", location.pathname + write(state)];

/** Note a state. kind: several changes of one kind, one soon after the other, are one step; null: always a new one. */
export function record(state, kind = null, opened = false) {
  const same = kind !== null && kind === last.kind && Date.now() - last.at < PAUSE;
  last = { kind, at: Date.now() };
  if (same) return history.replaceState(...kept(state, step, history.state?.opened));
  places.set(step, scrollY);
  history.pushState(...kept(state, ++step, opened));
}

/** Note a state in the place of the present one. */
export const amend = (state) => history.replaceState(...kept(state, step, history.state?.opened));

/** The state that the URL stands for, with the pictures of this session that it once held. `lost`: pictures that are gone. */
export function present() {
  const state = read(location.search);
  const terms = history.state?.terms ?? state.terms;
  const there = terms.filter((term) => term.kind !== "upload" || upload(term.value));
  return { state: { ...state, terms: there }, lost: terms.length - there.length };
}

/** After back or forward: call with (state, scrolled to). */
export function onTravel(call) {
  addEventListener("popstate", () => {
    places.set(step, scrollY);
    step = history.state?.step ?? 0;
    last = { kind: null, at: 0 };
    call(present().state, places.get(step) ?? 0);
  });
}

/** Whether the open item was opened from this page, so that closing it is a step back. */
export const opened = () => !!history.state?.opened;
