// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/safetensors_index.h"

#include <boost/json/object.hpp>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/strict_json.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

// A file name of the index must not lead out of the folder.
bool IsPlainName(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find('/') == name.npos && name.find('\0') == name.npos;
}

}  // namespace

absl::StatusOr<WeightMap> ReadSafetensorsIndex(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadSmallFile(path, limits::kSafetensorsHeaderBytesMax));
  ASSIGN_OR_RETURN(const json::value document, ParseStrictJson(text, path));
  const json::object* index = document.if_object();
  const json::value* value = index ? index->if_contains("weight_map") : nullptr;
  const json::object* map = value ? value->if_object() : nullptr;
  if (!map || map->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": weight_map is missing or empty"));
  }
  WeightMap out;
  for (const auto& [key, file] : *map) {
    const std::string name(key);
    const json::string* text = file.if_string();
    if (!text || !IsPlainName({text->data(), text->size()})) {
      return absl::InvalidArgumentError(
          absl::StrCat(path,
                       ": weight_map: ",
                       Quoted(name),
                       ": must be the name of a file in the same folder"));
    }
    out[name] = std::string(text->data(), text->size());
  }
  return out;
}

}  // namespace conclave::checkpoint
