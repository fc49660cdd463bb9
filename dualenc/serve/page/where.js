// The SQL condition that the panel's filters and the typed one make together.

const name = (column) => `"${column.replaceAll('"', '""')}"`;
const text = (value) => `'${String(value).replaceAll("'", "''")}'`;

function literal(value, type) {
  if (type === "number" && value.trim() !== "" && Number.isFinite(Number(value))) return String(value).trim();
  if (type === "boolean" && /^(true|false)$/i.test(value)) return value.toLowerCase();
  return text(value); // DuckDB casts a text to the column's type
}

/** One column's condition, or null. */
function condition(column, type, filter) {
  const any = [];
  if (filter.values?.length) any.push(`${name(column)} IN (${filter.values.map((value) => literal(value, type)).join(", ")})`);
  if (filter.none) any.push(`${name(column)} IS NULL`);
  const all = any.length ? [any.length > 1 ? `(${any.join(" OR ")})` : any[0]] : [];
  if (filter.from) all.push(`${name(column)} >= ${literal(filter.from, type)}`);
  if (filter.to) all.push(`${name(column)} <= ${literal(type === "time" ? wholeDay(filter.to) : filter.to, type)}`);
  if (filter.has) all.push(`contains(lower(${name(column)}), ${text(filter.has.toLowerCase())})`);
  return all.length ? all.join(" AND ") : null;
}

const wholeDay = (date) => (/^\d{4}-\d{2}-\d{2}$/.test(date) ? `${date} 23:59:59.999999` : date);

/** The condition for filters {column: filter} and the typed text; null where there is none. columns: GET /indexes'. */
export function sql(filters, typed, columns) {
  const types = new Map(columns.map((column) => [column.name, column.type]));
  const parts = Object.entries(filters)
    .map(([column, filter]) => condition(column, types.get(column), filter))
    .filter(Boolean);
  if (!typed.trim()) return parts.length ? parts.join(" AND ") : null;
  if (!parts.length) return typed.trim();
  return `${parts.join(" AND ")} AND (\n${typed.trim()}\n)`; // on lines of its own, so that a comment ends there
}
