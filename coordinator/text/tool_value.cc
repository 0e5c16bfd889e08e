// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/tool_value.h"

#include <boost/json.hpp>
#include <optional>
#include <utility>

#include "common/limits.h"
#include "coordinator/text/unicode.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

// What a schema allows. Nothing said: anything.
struct Types {
  bool string = false, number = false, boolean = false, null = false;
  bool container = false;

  bool Any() const { return string || number || boolean || null || container; }
  bool OnlyString() const {
    return string && !number && !boolean && !null && !container;
  }
};

void AddType(std::string_view name, Types& types) {
  types.string |= name == "string";
  types.number |= name == "number" || name == "integer";
  types.boolean |= name == "boolean";
  types.null |= name == "null";
  types.container |= name == "object" || name == "array";
}

void AddTypeOf(const json::value& value, Types& types) {
  types.string |= value.is_string();
  types.number |= value.is_number();
  types.boolean |= value.is_bool();
  types.null |= value.is_null();
  types.container |= value.is_structured();
}

const json::value* Find(const json::value& object, std::string_view key) {
  return object.is_object() ? object.get_object().if_contains(key) : nullptr;
}

// The depth of a schema is bounded by the parser that read it.
void AddTypes(const json::value& schema, Types& types) {
  const json::value* type = Find(schema, "type");
  const json::value* values = Find(schema, "enum");
  if (type != nullptr && type->is_string()) {
    AddType(std::string_view(type->get_string()), types);
  } else if (type != nullptr && type->is_array()) {
    for (const json::value& item : type->get_array()) {
      if (item.is_string()) AddType(std::string_view(item.get_string()), types);
    }
  } else if (values != nullptr && values->is_array()) {
    for (const json::value& one : values->get_array()) AddTypeOf(one, types);
  }
  for (const char* key : {"anyOf", "oneOf"}) {
    const json::value* choices = Find(schema, key);
    if (choices == nullptr || !choices->is_array()) continue;
    for (const json::value& one : choices->get_array()) AddTypes(one, types);
  }
}

// True, False and None outside of strings as JSON has them.
std::string FromPython(std::string_view text) {
  static constexpr std::pair<std::string_view, std::string_view> kWords[] = {
      {"True", "true"}, {"False", "false"}, {"None", "null"}};
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size();) {
    size_t taken = 0;
    for (const auto& [python, word] : kWords) {
      if (in_string || !text.substr(i).starts_with(python)) continue;
      out += word;
      taken = python.size();
      break;
    }
    if (taken == 0) {
      if (text[i] == '"') in_string = !in_string;
      taken = in_string && text[i] == '\\' && i + 1 < text.size() ? 2 : 1;
      out += text.substr(i, taken);
    }
    i += taken;
  }
  return out;
}

std::optional<json::value> Parse(std::string_view text) {
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  json::error_code error;
  json::value value = json::parse(
      json::string_view(text.data(), text.size()), error, {}, options);
  if (error) return std::nullopt;
  return value;
}

bool Allows(const Types& types, const json::value& value) {
  if (!types.Any()) return true;
  // Models say null for "left out", whatever the type.
  if (value.is_null()) return types.null || !types.string;
  if (value.is_bool()) return types.boolean;
  if (value.is_number()) return types.number;
  // Quotes belong to a raw string.
  return value.is_structured() && types.container;
}

}  // namespace

json::object ToolProperties(std::string_view parameters) {
  const auto schema = Parse(parameters);
  if (!schema) return {};
  const json::value* properties = Find(*schema, "properties");
  if (properties == nullptr || !properties->is_object()) return {};
  return properties->get_object();
}

std::string ToolValueJson(std::string_view raw, const json::value* schema) {
  Types types;
  if (schema != nullptr) AddTypes(*schema, types);
  if (!types.OnlyString()) {
    std::string text(StripSpace(raw));
    auto value = Parse(text);
    if (!value) value = Parse(text = FromPython(text));
    if (value && Allows(types, *value)) return text;
  }
  return json::serialize(
      json::value(json::string_view(raw.data(), raw.size())));
}

}  // namespace conclave::text
