// The draft tree of one request: committed tokens from the left, drafts to the right, the most probable way straight on.

import { html, marked, svg } from "./elements.js";

const COLUMN = 86, ROW = 40, WIDTH = 70, HEIGHT = 30, MARGIN = 18;
const MAX_LABEL = 9; // characters that fit into a node

const NARROW = 700; // below this, in pixels, there is room for one committed token before the head
const BEFORE_HEAD = 3;

let drawnSession = null;

/** `texts`: of the nodes, where the server tells them. Returns how many committed tokens have no room before the head. */
export function drawTree(place, tree, texts) {
  const all = layOut(tree.nodes.map((node, index) => ({ ...node, text: texts?.[index] ?? null, children: [] })));
  const nodes = pinned(all, tree.head_id, innerWidth < NARROW ? 1 : BEFORE_HEAD);
  const width = MARGIN * 2 + COLUMN * Math.max(...nodes.map((node) => node.column)) + WIDTH;
  const height = MARGIN * 2 + ROW * Math.max(...nodes.map((node) => node.row)) + HEIGHT;
  const canvas = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary(tree) });
  canvas.append(...nodes.filter((node) => node.parent).map(edge), ...nodes.map((node) => drawn(node, tree.head_id)));
  place.replaceChildren(canvas);
  if (tree.session_id !== drawnSession) place.scrollTo(0, 0);
  drawnSession = tree.session_id;
  return all.length - nodes.length;
}

/** The nodes that stay when the head keeps its place: column `before`, whatever has been committed meanwhile. */
function pinned(nodes, headId, before) {
  const shift = before - nodes.find((node) => node.node_id === headId).column;
  for (const node of nodes) node.column += shift;
  for (const node of nodes) if (node.parent?.column < 0) node.parent = null;
  return nodes.filter((node) => node.column >= 0);
}

const summary = (tree) => `${tree.nodes.filter((node) => !node.is_committed).length} drafts below the head`;

/** Rows and columns. Each node's best child stays in its row; the others open new ones below. */
function layOut(nodes) {
  const known = new Map();
  const tops = [];
  for (const node of nodes) {
    known.set(node.node_id, node);
    node.parent = known.get(node.parent_id) ?? null;
    (node.parent?.children ?? tops).push(node);
  }
  let row = 0;
  const place = (node, column) => {
    Object.assign(node, { column, row });
    node.children.sort((one, other) => other.probability - one.probability || one.node_id - other.node_id);
    node.children.forEach((child, index) => {
      if (index) row += 1;
      place(child, column + 1);
    });
  };
  tops.forEach((node) => place(node, 0));
  return nodes;
}

const left = (node) => MARGIN + COLUMN * node.column;
const top = (node) => MARGIN + ROW * node.row;

function edge(node) {
  const x1 = left(node.parent) + WIDTH, y1 = top(node.parent) + HEIGHT / 2;
  const x2 = left(node), y2 = top(node) + HEIGHT / 2, middle = (x1 + x2) / 2;
  const width = 0.8 + 2.4 * node.probability;
  return svg("path", { class: `edge ${kind(node)}`, d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`, "stroke-width": width });
}

const kind = (node) => (node.is_committed ? "committed" : node.is_from_worker ? "worker" : "local");

function drawn(node, headId) {
  const isHead = node.node_id === headId;
  const share = `${(100 * node.probability).toFixed(node.probability < 0.0995 ? 1 : 0)} %`;
  const label = node.token === null ? "prompt" : node.text === null ? String(node.token) : marked(node.text) || "∅";
  const middle = WIDTH / 2;
  const group = svg("g", { class: `node ${kind(node)}${isHead ? " head" : ""}`, transform: `translate(${left(node)} ${top(node)})` });
  group.append(
    svg("title", {}, described(node, label, share)),
    svg("rect", {
      width: WIDTH,
      height: HEIGHT,
      rx: kind(node) === "worker" ? HEIGHT / 2 : 3,
      "fill-opacity": node.is_committed ? 1 : 0.05 + 0.5 * node.probability,
    }),
    svg("text", { x: middle, y: 13, class: "token" }, shortened(label)),
    svg("text", { x: middle, y: 25, class: "share" }, isHead ? "head" : node.is_committed ? "committed" : share),
  );
  return group;
}

function described(node, label, share) {
  const origin = node.is_from_worker ? "proposed by the worker" : node.is_committed ? "" : "drafted here";
  const fate = node.is_committed ? "committed" : share;
  return [`${label}, position ${node.position}`, fate, origin].filter(Boolean).join(", ");
}

function shortened(label) {
  const characters = [...label];
  return characters.length > MAX_LABEL ? `${characters.slice(0, MAX_LABEL - 1).join("")}…` : label;
}

/** What the shapes mean. */
export function drawLegend(place) {
  const sample = (name, text, round) => {
    const swatch = svg("svg", { width: 26, height: 14, class: `node ${name}`, "aria-hidden": "true" });
    swatch.append(svg("rect", { x: 1, y: 1, width: 24, height: 12, rx: round, "fill-opacity": name === "committed" ? 1 : 0.4 }));
    return html("span", {}, swatch, " ", text);
  };
  place.replaceChildren(
    sample("committed", "committed, not yet acknowledged by the worker", 2),
    sample("worker", "draft of the worker", 6),
    sample("local", "draft made here", 2),
    html("span", {}, "The stronger the colour, the more probable from the head on."),
  );
}
