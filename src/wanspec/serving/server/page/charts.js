// The last five minutes: a card with the present value and a line for each figure.

import { html, svg } from "./elements.js";

const SPAN_S = 300;
const HEIGHT = 60;

// `value` of one second; null where there is none. A second: [number, tokens, local passes, itl_s, ttft_s], absent if idle.
// `recent_s`: the mean of so many seconds is the present value.
const CHARTS = [
  { title: "Throughput", unit: "tokens/s", digits: 0, recent_s: 10, kind: "area", value: (second) => (second ? second[1] : 0) },
  { title: "Inter-token latency", unit: "ms", digits: 1, recent_s: 10, kind: "line", value: (second) => scaled(second?.[3]) },
  { title: "Time to first token", unit: "ms", digits: 0, recent_s: 60, kind: "dots", value: (second) => scaled(second?.[4]) },
  { title: "Local draft passes", unit: "per token", digits: 2, recent_s: 10, kind: "line", value: (second) => perToken(second) },
];

const perToken = (second) => (second?.[1] ? second[2] / second[1] : null);

const scaled = (seconds) => (seconds === null || seconds === undefined ? null : 1e3 * seconds);

/** `seconds`: by number; `now`: the number of the second that is not over yet. */
export function drawCharts(place, seconds, now) {
  place.replaceChildren(...CHARTS.map((chart) => card(chart, seconds, now)));
}

function card(chart, seconds, now) {
  const values = Array.from({ length: SPAN_S }, (_, index) => {
    const number = now - SPAN_S + index;
    return number < 0 ? null : chart.value(seconds.get(number));
  });
  const known = values.filter((value) => value !== null);
  const top = niceTop(Math.max(0, ...known));
  const recent = values.slice(-chart.recent_s).filter((value) => value !== null);
  const mean = recent.length ? recent.reduce((sum, value) => sum + value, 0) / recent.length : null;
  const shown = mean === null ? "–" : mean.toFixed(chart.digits);
  return html(
    "figure",
    {},
    html("figcaption", {}, chart.title),
    html("p", { class: "value" }, shown, " ", html("small", {}, chart.unit)),
    picture(chart, values, top, `${chart.title}, last five minutes: now ${shown} ${chart.unit}`),
    html("p", { class: "axis" }, html("span", {}, "5 min"), html("span", {}, known.length ? `top ${top}` : ""), html("span", {}, "now")),
  );
}

function picture(chart, values, top, label) {
  const canvas = svg("svg", { viewBox: `0 0 ${SPAN_S} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  canvas.append(svg("path", { class: "base", d: `M0 ${HEIGHT}H${SPAN_S}` }));
  if (chart.kind === "area") canvas.append(svg("path", { class: "below", d: area(values, top) }));
  canvas.append(svg("path", { class: `line ${chart.kind}`, d: line(values, top, chart.kind !== "dots") }));
  return canvas;
}

/** Neighbours are joined, where they should be; a value alone becomes a dot: a line of no length with round ends. */
function line(values, top, areJoined) {
  let path = "";
  values.forEach((value, index) => {
    if (value === null) return;
    const isFirst = !areJoined || index === 0 || values[index - 1] === null;
    path += `${isFirst ? "M" : "L"}${index} ${y(value, top)}${isFirst ? "h0" : ""}`;
  });
  return path;
}

function area(values, top) {
  const points = values.map((value, index) => `L${index} ${y(value ?? 0, top)}`);
  return `M0 ${HEIGHT}${points.join("")}L${SPAN_S - 1} ${HEIGHT}Z`;
}

const y = (value, top) => (HEIGHT - (HEIGHT - 2) * (value / top)).toFixed(1);

/** The next round number above. */
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const top = [1, 1.5, 2, 3, 5, 7, 10].find((step) => step * power >= value) * power;
  return Number(top.toPrecision(2));
}
