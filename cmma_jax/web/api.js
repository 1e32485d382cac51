// A small page over /openapi.json: every operation, what it takes and what it answers.

const spec = await (await fetch("openapi.json")).json();
const holder = document.getElementById("operations");
document.getElementById("said").textContent = spec.info.description;

function make(tag, text, ...children) {
  const made = document.createElement(tag);
  made.append(text, ...children);
  return made;
}

// Returns a schema with what it refers to in its place, and long lists of names cut short.
function resolve(schema) {
  if (Array.isArray(schema)) return schema.length > 12 ? [...schema.slice(0, 12).map(resolve), `... ${schema.length - 12} more`] : schema.map(resolve);
  if (schema === null || typeof schema !== "object") return schema;
  if (schema.$ref) return resolve(schema.$ref.slice(2).split("/").reduce((at, name) => at[name], spec));
  return Object.fromEntries(Object.entries(schema).filter(([name, value]) => name !== "title" || typeof value === "object").map(([name, value]) => [name, resolve(value)]));
}

function block(title, value) {
  const details = make("details", make("summary", title));
  details.append(make("pre", JSON.stringify(value, null, 1)));
  return details;
}

for (const [path, operations] of Object.entries(spec.paths)) {
  for (const [method, operation] of Object.entries(operations)) {
    const card = make("section", make("h2", `${method.toUpperCase()} ${path}`), make("p", operation.description ?? ""));
    card.className = "card";
    if (operation.parameters) card.append(block("Parameters", resolve(operation.parameters)));
    if (operation.requestBody) card.append(block("Body", resolve(operation.requestBody.content)));
    card.append(block("Answer", resolve(operation.responses["200"].content)));
    const others = make("p", `Otherwise: ${Object.entries(operation.responses).filter(([status]) => status !== "200").map(([status, { description }]) => `${status} ${description}`).join("; ")}.`);
    others.className = "hint";
    card.append(others);
    holder.append(card);
  }
}
