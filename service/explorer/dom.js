/** Short names for DOM operations. */

/**
 * Find an element. Throws if the page lacks it.
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

/** Show an error in a panel; an empty sentence removes it. @param {ParentNode} panel @param {string} sentence */
export function trouble(panel, sentence) {
  const line = find(panel, ".trouble", HTMLElement);
  line.textContent = sentence;
  line.hidden = !sentence;
}
