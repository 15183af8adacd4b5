// JSON schemas in words: references followed, nested messages as dotted fields.

const DEPTH_MAX = 4;

/** The thing itself when `value` is a {"$ref": "#/…"}. */
export function resolve(doc, value) {
  if (!value?.$ref) return value ?? {};
  return value.$ref.slice(2).split("/").reduce((at, key) => at?.[key.replaceAll("~1", "/").replaceAll("~0", "~")], doc) ?? {};
}

/** "list of number", "map of string to InputTensor". */
export function typeName(doc, schema) {
  const found = resolve(doc, schema);
  const types = [found.type ?? []].flat().filter((type) => type !== "null");
  if (types.includes("array")) return `list of ${typeName(doc, found.items ?? {})}`;
  if (found.additionalProperties && typeof found.additionalProperties === "object" && !found.properties) {
    return `map to ${typeName(doc, found.additionalProperties)}`;
  }
  if (found.enum) return found.enum.join(" | ");
  const alternatives = found.oneOf ?? found.anyOf;
  if (!types.length && alternatives) return alternatives.map((one) => typeName(doc, one)).join(" or ");
  return types.join(" or ") || "any JSON";
}

/** [{name, type, required, description}] of an object's fields; those of nested objects follow theirs as "outer.inner". */
export function fieldRows(doc, schema, prefix = "", depth = 0) {
  const found = resolve(doc, schema);
  const required = new Set(found.required ?? []);
  return Object.entries(found.properties ?? {}).flatMap(([name, property]) => {
    const inner = resolve(doc, property);
    const row = {
      name: prefix + name,
      type: typeName(doc, property),
      required: required.has(name),
      description: property.description ?? inner.description ?? "",
    };
    return depth < DEPTH_MAX ? [row, ...nested(doc, inner, `${prefix}${name}`, depth)] : [row];
  });
}

function nested(doc, schema, name, depth) {
  if (schema.items) return fieldRows(doc, schema.items, `${name}[].`, depth + 1);
  if (schema.additionalProperties?.$ref) return fieldRows(doc, schema.additionalProperties, `${name}.*.`, depth + 1);
  return fieldRows(doc, schema, `${name}.`, depth + 1);
}
