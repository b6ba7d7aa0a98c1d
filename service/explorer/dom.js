/** Small words for the page's elements. */

/**
 * The one element of that kind; a page without it is broken, and says where.
 * @template {Element} E
 * @param {ParentNode} root
 * @param {string} selector
 * @param {new () => E} kind
 * @returns {E}
 */
export function find(root, selector, kind) {
  const found = root.querySelector(selector);
  if (!(found instanceof kind)) throw new Error(`the page has no ${kind.name} at ${selector}`);
  return found;
}

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Partial<HTMLElementTagNameMap[T]>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** @param {ParentNode} root @param {string} name @returns {HTMLButtonElement} the button that does `name` */
export const button = (root, name) => find(root, `button[data-do=${name}]`, HTMLButtonElement);

/** Tells in a panel what went wrong; an empty sentence takes it back. @param {ParentNode} panel @param {string} sentence */
export function trouble(panel, sentence) {
  const line = find(panel, ".trouble", HTMLElement);
  line.textContent = sentence;
  line.hidden = !sentence;
}
