// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/tool_call_parser.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>
#include <optional>

#include "common/limits.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr std::string_view kCallOpen = "<tool_call>";
constexpr std::string_view kCallClose = "</tool_call>";
constexpr std::string_view kFunctionOpen = "<function=";
constexpr std::string_view kFunctionClose = "</function>";
constexpr std::string_view kParameterOpen = "<parameter=";
constexpr std::string_view kParameterClose = "</parameter>";
// Longest opening that is waited for: whitespace and a name.
constexpr size_t kOpeningBytesMax = 512;

bool IsBlank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

size_t SkipBlanks(std::string_view text, size_t at) {
  while (at < text.size() && IsBlank(text[at])) ++at;
  return at;
}

// text[at..] may still grow into `marker`.
bool MayBecome(std::string_view text, size_t at, std::string_view marker) {
  const std::string_view rest = text.substr(at);
  return rest.size() < marker.size() && marker.starts_with(rest);
}

// The JSON schema's type of a parameter; empty if it says none.
std::string SchemaType(const Tool& tool, const std::string& name) {
  json::error_code error;
  const json::value schema = json::parse(tool.parameters_json, error);
  if (error || !schema.is_object()) return "";
  const json::value* properties = schema.get_object().if_contains("properties");
  if (properties == nullptr || !properties->is_object()) return "";
  const json::value* entry = properties->get_object().if_contains(name);
  if (entry == nullptr || !entry->is_object()) return "";
  const json::value* type = entry->get_object().if_contains("type");
  if (type != nullptr && type->is_array()) {
    for (const json::value& one : type->get_array()) {
      if (one.is_string() && one.get_string() != "null") {
        return std::string(one.get_string());
      }
    }
  }
  return type != nullptr && type->is_string() ? std::string(type->get_string())
                                              : "";
}

json::value Convert(const Tool& tool,
                    const std::string& name,
                    const std::string& text) {
  const std::string type = SchemaType(tool, name);
  if (type == "string") return json::value(text);
  if (text == "True") return true;
  if (text == "False") return false;
  if (text == "None") return nullptr;
  json::parse_options options;
  options.max_depth = limits::kJsonDepthMax;
  json::error_code error;
  json::value value = json::parse(text, error, {}, options);
  if (error) return json::value(text);
  return value;
}

struct Value {
  bool complete = false;
  size_t end = 0;   // of the value's text
  size_t next = 0;  // behind its closer
};

// The value ends at the first closer, or at what can only follow a value whose
// closer is missing.
Value FindValueEnd(std::string_view text, size_t begin, bool final) {
  struct Stop {
    std::string_view marker;
    bool taken;
  };
  static constexpr std::array<Stop, 4> kStops = {{{kParameterClose, true},
                                                  {"\n<parameter=", false},
                                                  {"\n</function>", false},
                                                  {kCallClose, false}}};
  Value best;
  for (const Stop& stop : kStops) {
    const size_t at = text.find(stop.marker, begin);
    if (at == std::string_view::npos || (best.complete && at >= best.end)) {
      continue;
    }
    best = {true, at, at + (stop.taken ? stop.marker.size() : 0)};
  }
  if (!best.complete && final) best = {true, text.size(), text.size()};
  return best;
}

// Whatever ends the call; `at` stands behind the blanks.
std::optional<size_t> FindClosers(std::string_view text,
                                  size_t at,
                                  bool final,
                                  bool* more) {
  if (text.substr(at).starts_with(kFunctionClose)) {
    const size_t behind = at + kFunctionClose.size();
    const size_t next = SkipBlanks(text, behind);
    if (text.substr(next).starts_with(kCallClose)) {
      return next + kCallClose.size();
    }
    if (!MayBecome(text, next, kCallClose)) return behind;
    // A closer that the reply's end cut off is still the format's.
    *more = !final;
    return text.size();
  }
  if (text.substr(at).starts_with(kCallClose)) return at + kCallClose.size();
  return std::nullopt;
}

}  // namespace

CallStart FindCallStart(std::string_view text,
                        const std::vector<Tool>& tools,
                        bool final) {
  const CallStart more{final || text.size() > kOpeningBytesMax
                           ? CallStart::kNo
                           : CallStart::kMore,
                       0,
                       nullptr};
  size_t at = 0;
  if (text.starts_with(kCallOpen)) at = SkipBlanks(text, kCallOpen.size());
  if (MayBecome(text, at, kFunctionOpen)) return more;
  if (!text.substr(at).starts_with(kFunctionOpen)) return {};
  at += kFunctionOpen.size();
  const size_t end = text.find_first_of(">\n<", at);
  if (end == std::string_view::npos) return more;
  if (text[end] != '>') return {};
  const std::string_view name = text.substr(at, end - at);
  const auto tool = std::find_if(tools.begin(),
                                 tools.end(),
                                 [&](const Tool& t) { return t.name == name; });
  if (tool == tools.end() || end >= kOpeningBytesMax) return {};
  return {CallStart::kYes, end + 1, &*tool};
}

CallBody ParseCallBody(std::string_view text, const Tool& tool, bool final) {
  json::object arguments;
  const auto done = [&](size_t length) {
    return CallBody{true, length, json::serialize(arguments)};
  };
  for (size_t behind = 0;;) {
    const size_t at = SkipBlanks(text, behind);
    bool more = false;
    if (const auto end = FindClosers(text, at, final, &more)) {
      if (more) return {};
      return done(*end);
    }
    if (text.substr(at).starts_with(kParameterOpen)) {
      const size_t name = at + kParameterOpen.size();
      const size_t close = text.find('>', name);
      if (close == std::string_view::npos) {
        if (!final) return {};
        return done(text.size());
      }
      size_t begin = close + 1;
      if (begin == text.size() && !final) return {};
      // The newline before a missing closer belongs to the closer.
      const Value value = FindValueEnd(text, begin, final);
      if (!value.complete) return {};
      std::string_view inner = text.substr(begin, value.end - begin);
      if (inner.starts_with('\n')) inner.remove_prefix(1);
      if (inner.ends_with('\n')) inner.remove_suffix(1);
      const std::string key(text.substr(name, close - name));
      arguments[key] = Convert(tool, key, std::string(inner));
      behind = value.next;
      continue;
    }
    const bool may_go_on =
        at == text.size() || MayBecome(text, at, kParameterOpen) ||
        MayBecome(text, at, kFunctionClose) || MayBecome(text, at, kCallClose);
    if (may_go_on && !final) return {};
    // Something else: the closers are missing.
    return done(final && may_go_on ? text.size() : behind);
  }
}

}  // namespace conclave::text
