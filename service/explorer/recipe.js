/** The curl command and the Python program that do the same as a panel. */

import { address, apiKey } from "./api.js";
import { find, make } from "./dom.js";

/** @typedef {import("./api.js").Call} Call */

/** @param {ParentNode} panel @returns {(curl: string[], python: string) => void} replaces the recipe */
export function recipe(panel) {
  const [curlText, pythonText] = [make("code"), make("code")];
  const details = make("details", {}, make("summary", { textContent: "The same with curl and Python" }));
  for (const [name, text] of /** @type {[string, HTMLElement][]} */ ([["curl", curlText], ["Python", pythonText]])) {
    const code = make("pre", { tabIndex: 0, ariaLabel: name, role: "group" }, text);
    const head = make("div", { className: "head" }, make("h3", { textContent: name }), copier(name, text));
    details.append(head, code);
  }
  find(panel, ".recipe", HTMLElement).replaceChildren(details);
  return (curl, python) => {
    curlText.textContent = curl.join("\n\n");
    pythonText.textContent = python;
  };
}

/**
 * The command line that sends this call.
 * @param {Call} call
 * @param {string} [output] file for the answer; printed without one
 */
export function curl(call, output) {
  const parts = [quoted(address(call))];
  if (apiKey()) parts.push('-H "Authorization: Bearer $VAESERVE_API_KEY"');
  if (call.file) parts.push(`-H ${quoted(`Content-Type: ${call.file.type}`)}`, `--data-binary @${quoted(call.file.name)}`);
  if (call.json !== undefined) parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(call.json))}`);
  if (call.accept) parts.push(`-H 'Accept: ${call.accept}'`);
  if (output) parts.push(`-o ${output}`);
  return `curl ${parts.join(" \\\n  ")}`;
}

/** The command line that writes a file. @param {string} name @param {string} base64 its bytes */
export const saved = (name, base64) => `echo ${base64} | base64 -d > ${quoted(name)}`;

/**
 * A program that uses vaeserve's client.
 * @param {string} model name@version
 * @param {string[]} lines that use `client`
 * @param {string[]} [imports] in addition to the client
 */
export function python(model, lines, imports = []) {
  const url = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const standard = [...imports, ...(apiKey() ? ["import os"] : [])].sort();
  const key = apiKey() ? ', api_key=os.environ["VAESERVE_API_KEY"]' : "";
  return [
    ...standard,
    ...(standard.length ? [""] : []),
    "from vaeserve import Client",
    "",
    `with Client(${literal(url)}, model=${literal(model)}${key}) as client:`,
    ...lines.map((line) => `    ${line}`),
  ].join("\n");
}

/** A Python literal: JSON's strings and numbers are valid Python. @param {unknown} value */
export const literal = (value) => JSON.stringify(value);

/** Quote for a POSIX shell. @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** @param {string} name @param {HTMLElement} text */
function copier(name, text) {
  const press = make("button", { type: "button", className: "quiet", textContent: "Copy", ariaLabel: `Copy the ${name}` });
  const status = make("span", { role: "status" });
  press.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text.textContent ?? "");
      status.textContent = "Copied ";
    } catch {
      getSelection()?.selectAllChildren(text); // no clipboard outside of https and localhost
      status.textContent = "Selected: press Ctrl+C or ⌘C ";
    }
    setTimeout(() => { status.textContent = ""; }, 4000);
  });
  return make("span", {}, status, press);
}
