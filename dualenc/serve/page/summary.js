// The line above the hits: how many, how soon, and what the index is worth. And the states in which there are none.

import { byId, bytes, count, plural, percent, score } from "./dom.js";
import { clearNotice, notice, say } from "./notices.js";
import { filtered } from "./state.js";

/** Say how many hits are shown of some results. */
export function summarize(results, shown, state) {
  const more = results.next !== null && shown === results.hits.length;
  const filters = filtered(state);
  const what = !results.browse ? "" : filters ? "that pass the filters" : "to look around";
  const words = `${plural(shown, results.browse ? "item" : "hit")} ${what}`.trim();
  byId("said").textContent = results.browse && !filters ? "A look around" : more ? words.replace(/^[\d,]+/, "$&+") : words;
  const took = results.took !== null && !results.browse ? ` in ${results.took < 10 ? results.took.toFixed(1) : Math.round(results.took)} ms` : "";
  byId("said").dataset.took = took;
  say(`${words}${more ? ", more below" : ""}.`);
}

/** The index in a few words: size, kind, measured recall. */
export function describe(index) {
  const recall = index.exact ? "exact" : index.recall === null ? "recall not measured" : `recall@${index.recall_at} ${percent(index.recall)}`;
  const parts = [`${count(index.rows)} items`, index.kind === "flat" && index.exact ? "flat" : index.kind, recall, bytes(index.bytes)];
  if (index.encoder === "loading") parts.push("encoder loading");
  const place = byId("facts");
  place.textContent = parts.join(" · ");
  place.title = index.exact
    ? "Every row is compared with the search: nothing is missed."
    : `ANN recall: the share of the true ${index.recall_at} nearest that this index finds, measured when it was built.`;
}

/** Where nothing is shown, say why, and what to do. on: unfilter(), least(), nothing to do otherwise. */
export function explain(results, shown, state, on) {
  if (shown) return clearNotice();
  if (results.hits.length)
    return notice({ kind: "empty", title: "All hits score less than that", detail: `The best has ${score(results.hits[0].score)}; the lowest score that is shown is set to ${score(state.least)}.`, actions: [["Show them", on.least]] });
  if (results.rows === 0)
    return notice({ kind: "empty", title: "This index is empty", detail: "What is added to it (dualenc index add) can be found here at once." });
  if (filtered(state))
    return notice({ kind: "empty", title: "Nothing passes the filters", detail: "No item of this index fits all of them.", actions: [["Clear the filters", on.unfilter]] });
  return notice({ kind: "empty", title: "Nothing found", detail: "Try other words, or a picture." });
}

/** What went wrong, and when it is tried again. */
export function complain(trouble, wait, on) {
  const { kind, status, title, detail } = trouble;
  if (kind === "offline") return notice({ kind: "offline", title, detail, wait, actions: [["Try now", on.again]] });
  if (kind === "wait" && status === 503)
    return notice({ kind: "wait", title: /load/i.test(title + detail) ? "The encoder is still loading" : title, detail: "The search starts by itself as soon as it is there. Looking around, filters and searching by a hit work already.", wait });
  if (kind === "wait") return notice({ kind: "wait", title, detail, wait });
  const actions = kind === "broken" ? [["Try again", on.again]] : on.first ? [[`Go to ${on.first}`, on.useFirst]] : on.leaveOut ? [["Leave it out", on.leaveOut]] : [];
  return notice({ kind: "alert", title, detail: detail === title ? "" : detail, actions });
}
