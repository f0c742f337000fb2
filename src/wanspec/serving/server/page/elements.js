// Makes elements. What workers and users have written becomes text nodes here, never markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export const html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

export const svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** A name that somebody else chose: it cannot turn the direction of the text around it. */
export const foreign = (text) => html("bdi", {}, visible(text));

/** Text in which everything can be seen: blanks, ends of lines, and what would not print. */
export const marked = (text) => visible(text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "·"));

const visible = (text) => text.replace(/\p{C}/gu, "\u{FFFD}");
