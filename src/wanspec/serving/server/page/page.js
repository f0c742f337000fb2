// Asks for /status.json every second and shows it. The key lives in this tab's sessionStorage and goes out in one header.

import { drawCharts } from "./charts.js";
import { byId, foreign, html } from "./elements.js";
import { drawLegend, drawTree } from "./tree.js";

const PERIOD_MS = 1000;
const TIMEOUT_MS = 5000;
const KEPT_S = 300;
const KEY = "wanspec-api-key";

const seconds = new Map(); // figures of each second, by number
let newest = -1; // number of the newest second that we know
let beganAt = 0; // of the server; another one counts anew
let chosen = null; // the session whose tree the reader wants; null: the oldest
let shown = null; // the session that is asked for
let asked = null; // the one that was asked for last
let isPaused = false;
let timer = 0;

async function poll() {
  clearTimeout(timer);
  if (document.hidden || isPaused) return;
  try {
    const answer = await ask();
    if (answer.status === 401) return askForKey();
    if (!answer.ok) throw new Error(`the server answers with status ${answer.status}`);
    const status = await answer.json();
    notice("");
    show(status);
  } catch (error) {
    const reason = error.name === "TimeoutError" ? "it takes too long" : error.message;
    notice(`No news from the server: ${reason}. Trying again.`);
  }
  clearTimeout(timer); // the reader may have woken us meanwhile
  timer = setTimeout(poll, shown === asked ? PERIOD_MS : 0); // another one is to be shown, now and not in a second
}

function ask() {
  asked = shown;
  const query = new URLSearchParams({ since: newest });
  if (shown !== null) query.set("request", shown);
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  return fetch(`/status.json?${query}`, { headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(TIMEOUT_MS) });
}

function askForKey() {
  notice(sessionStorage.getItem(KEY) ? "This key is not valid." : "");
  sessionStorage.removeItem(KEY);
  byId("content").hidden = byId("pause").hidden = byId("forget").hidden = true;
  byId("key-form").hidden = false;
  byId("key").focus();
}

function notice(text) {
  byId("notice").textContent = text;
  byId("content").classList.toggle("stale", Boolean(text));
}

function show(status) {
  remember(status);
  byId("key-form").hidden = true;
  byId("content").hidden = byId("pause").hidden = false;
  byId("forget").hidden = !sessionStorage.getItem(KEY);
  byId("model").replaceChildren(foreign(status.model));
  byId("state").textContent = status.state;
  byId("state").className = `badge ${status.state}`;
  byId("load").textContent = `${status.running} running, ${status.waiting} waiting`;
  byId("failure").hidden = !status.failure;
  byId("failure").textContent = `The engine has failed: ${status.failure}. Nothing is served any more, and the server is about to end; it has to be started again.`;
  byId("content").classList.toggle("stale", Boolean(status.failure));
  drawCharts(byId("charts"), seconds, status.second);
  showWorkers(status);
  showTree(status);
  showRequests(status);
  showLately(status);
}

/** Keep the figures of the last minutes; forget everything about a server that is no more. */
function remember(status) {
  if (status.began_at !== beganAt) {
    beganAt = status.began_at;
    newest = -1;
    seconds.clear();
  }
  for (const second of status.seconds) {
    seconds.set(second[0], second);
    newest = Math.max(newest, second[0]);
  }
  for (const number of seconds.keys()) if (number < status.second - KEPT_S) seconds.delete(number);
}

function showWorkers({ workers, failure }) {
  byId("no-workers").hidden = workers.length > 0 || Boolean(failure);
  table(byId("workers"), ["Worker", "RTT", "Proposed", "Draft step", "Requests", "State"], workers.map((worker) => [
    html("span", {}, foreign(worker.name), ...worker.labels.map((label) => html("span", { class: "label" }, foreign(label)))),
    worker.rtt_s === null ? "–" : ms(worker.rtt_s),
    worker.share === null ? "–" : meter(worker.share),
    ms(worker.step_s),
    `${worker.sessions} of ${worker.max_sessions}`,
    failure ? "–" : worker.rests_s > 0 ? `rests ${Math.ceil(worker.rests_s)} s` : worker.sessions ? "drafts" : "idle",
  ]));
}

function showRequests(status) {
  byId("no-requests").hidden = status.requests.length > 0;
  byId("own-requests").hidden = status.sees_all;
  const names = ["Request", "Age", "Tokens", "Tokens/s", "Worker", "Rounds", "Accepted a round", "Local passes", "In tree"];
  table(byId("requests"), names, status.requests.map((request) => [
    requestButton(request),
    `${request.age_s.toFixed(1)} s`,
    request.tokens,
    request.tokens_per_s === null ? "–" : request.tokens_per_s.toFixed(1),
    request.worker === null ? "–" : foreign(request.worker),
    request.rounds,
    request.rounds ? (request.accepted_draft_tokens / request.rounds).toFixed(2) : "–",
    request.local_draft_passes,
    request.drafts,
  ]));
  if (status.left_out) byId("requests").append(html("caption", {}, `and ${status.left_out} younger ones`));
}

function requestButton(request) {
  const name = request.choice ? `${request.id} #${request.choice}` : request.id;
  if (request.number === null) return html("span", {}, foreign(name), " ", html("span", { class: "label" }, "waits"));
  const button = html("button", { type: "button", class: "choose", "aria-pressed": request.number === shown, title: name }, foreign(name));
  button.addEventListener("click", () => choose(request.number));
  return button;
}

function choose(number) {
  chosen = shown = number;
  poll();
}

/** The tree that we asked for, and which to ask for next: the reader's choice, or the oldest request. */
function showTree(status) {
  const numbers = status.requests.map((request) => request.number).filter((number) => number !== null);
  if (status.tree) {
    const request = status.requests.find((one) => one.number === status.tree.session_id);
    byId("tree-of").replaceChildren("of ", foreign(request?.id ?? String(status.tree.session_id)));
    const before = drawTree(byId("tree"), status.tree, status.texts);
    const rest = [before && `${before} more committed tokens before`, status.tree.left_out && `${status.tree.left_out} less probable drafts`];
    byId("tree-rest").textContent = rest.some(Boolean) ? `and ${rest.filter(Boolean).join(", ")}` : "";
    byId("tree-section").hidden = false;
  } else if (shown !== null && !numbers.includes(shown)) {
    byId("tree-rest").textContent = "This request has ended.";
  }
  byId("tree").classList.toggle("stale", !status.tree);
  if (chosen !== null && !numbers.includes(chosen)) chosen = null;
  shown = chosen ?? (numbers.includes(shown) ? shown : (numbers[0] ?? null));
}

/** What happened before anybody looked. */
function showLately(status) {
  const ago = (seconds) => (seconds < 90 ? `${seconds.toFixed(0)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(0)} min` : `${(seconds / 3600).toFixed(0)} h`);
  const counts = (numbers) => Object.entries(numbers).map(([name, number]) => `${name}: ${number}`).join(", ");
  const lines = status.departed.map((worker) => ["worker ", foreign(worker.name), ` left ${ago(worker.age_s)} ago (${worker.cause})`]);
  if (counts(status.refused_workers)) lines.push([`workers not let in since the start: ${counts(status.refused_workers)}`]);
  if (counts(status.refused_requests)) lines.push([`requests refused since the start, by status: ${counts(status.refused_requests)}`]);
  lines.push([`up for ${ago(Math.max(0, Date.now() / 1e3 - status.began_at))}, version ${status.version}`]);
  byId("lately").replaceChildren(...lines.map((line) => html("li", {}, ...line)));
}

/** Fill a table; on a narrow screen each row becomes a card, with the names of its columns in it. */
function table(place, names, rows) {
  const focused = [...place.querySelectorAll("button")].indexOf(document.activeElement);
  const head = html("thead", {}, html("tr", {}, ...names.map((name) => html("th", { scope: "col" }, name))));
  const body = rows.map((row) => html("tr", {}, ...row.map((cell, index) => html("td", { "data-name": names[index] }, cell))));
  place.replaceChildren(head, html("tbody", {}, ...body));
  place.hidden = rows.length === 0;
  place.querySelectorAll("button")[focused]?.focus();
}

const ms = (seconds) => `${(1e3 * seconds).toFixed(1)} ms`;

function meter(share) {
  const bar = html("meter", { min: 0, max: 1, value: share });
  return html("span", {}, bar, ` ${(100 * share).toFixed(0)} %`);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  poll();
});
byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  poll();
});
byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").textContent = isPaused ? "Go on" : "Pause";
  poll();
});
document.addEventListener("visibilitychange", poll);
drawLegend(byId("legend"));
poll();
