// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/json_format.h"

#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

// repr(float) of Python: shortest digits, an exponent below 1e-4 and from 1e16
// on, always a point or an exponent.
std::string PythonFloat(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  std::array<char, 64> raw;
  const double size = std::fabs(value);
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto end = std::to_chars(
      raw.data(),
      raw.data() + raw.size(),
      value,
      plain ? std::chars_format::fixed : std::chars_format::scientific);
  std::string out(raw.data(), end.ptr);
  if (plain && out.find('.') == std::string::npos) out += ".0";
  return out;
}

void AppendString(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          absl::StrAppendFormat(&out, "\\u%04x", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

void Append(const json::value& value, std::string& out) {
  switch (value.kind()) {
    case json::kind::null:
      out += "null";
      break;
    case json::kind::bool_:
      out += value.get_bool() ? "true" : "false";
      break;
    case json::kind::int64:
      absl::StrAppend(&out, value.get_int64());
      break;
    case json::kind::uint64:
      absl::StrAppend(&out, value.get_uint64());
      break;
    case json::kind::double_:
      out += PythonFloat(value.get_double());
      break;
    case json::kind::string:
      AppendString(value.get_string(), out);
      break;
    case json::kind::array: {
      out += '[';
      const char* comma = "";
      for (const json::value& element : value.get_array()) {
        out += comma;
        Append(element, out);
        comma = ", ";
      }
      out += ']';
      break;
    }
    case json::kind::object: {
      out += '{';
      const char* comma = "";
      for (const auto& member : value.get_object()) {
        out += comma;
        AppendString(member.key(), out);
        out += ": ";
        Append(member.value(), out);
        comma = ", ";
      }
      out += '}';
      break;
    }
  }
}

}  // namespace

std::string PythonJson(const json::value& value) {
  std::string out;
  Append(value, out);
  return out;
}

std::string PythonText(const json::value& value) {
  if (value.is_null()) return "None";
  if (value.is_bool()) return value.get_bool() ? "True" : "False";
  if (value.is_string()) return std::string(value.get_string());
  return PythonJson(value);
}

}  // namespace conclave::text
