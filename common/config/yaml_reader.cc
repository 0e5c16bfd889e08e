// SPDX-License-Identifier: Apache-2.0
#include "common/config/yaml_reader.h"

#include <google/protobuf/descriptor.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <numeric>
#include <set>
#include <sstream>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::config {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

// Aliases make a small file large; this many list items end it.
constexpr int kItemsMax = 100'000;

std::string Shown(const std::string& text) {
  constexpr size_t kShown = 80;
  return absl::StrCat("'",
                      absl::CHexEscape(text.substr(0, kShown)),
                      text.size() > kShown ? "...'" : "'");
}

std::string KindOf(const YAML::Node& node) {
  if (node.IsNull()) return "nothing";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "a group of keys";
  return Shown(node.Scalar());
}

std::vector<std::string> FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) {
    names.push_back(type.field(i)->name());
  }
  return names;
}

class Reader {
 public:
  Reader(const std::string& file, const InitMessageFn& init)
      : file_(file), init_(init) {}

  // `where`: path of the message, "" at the top.
  absl::Status ReadMessage(const YAML::Node& node,
                           const std::string& where,
                           Message& out) {
    init_(out);
    if (node.IsNull()) return absl::OkStatus();  // all keys commented out
    if (!node.IsMap()) {
      return Bad(node,
                 absl::StrCat(where.empty() ? "the file" : where,
                              " must be a group of keys, is ",
                              KindOf(node)));
    }
    std::set<std::string> seen;
    for (const auto& entry : node) {
      if (!entry.first.IsScalar()) {
        return Bad(entry.first,
                   absl::StrCat("a key", In(where), " must be a word"));
      }
      const std::string key = entry.first.Scalar();
      const FieldDescriptor* field = out.GetDescriptor()->FindFieldByName(key);
      if (!field) return Unknown(entry.first, where, *out.GetDescriptor());
      if (!seen.insert(key).second) {
        return Bad(
            entry.first,
            absl::StrCat("key ", Shown(key), In(where), " stands there twice"));
      }
      const std::string path =
          where.empty() ? key : absl::StrCat(where, ".", key);
      RETURN_IF_ERROR(ReadField(entry.second, path, *field, out));
    }
    return absl::OkStatus();
  }

 private:
  static std::string In(const std::string& where) {
    return where.empty() ? " at the top level" : absl::StrCat(" in ", where);
  }

  absl::Status Bad(const YAML::Node& node, const std::string& why) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ":", node.Mark().line + 1, ": ", why));
  }

  absl::Status Unknown(const YAML::Node& key,
                       const std::string& where,
                       const Descriptor& type) const {
    const std::vector<std::string> names = FieldNames(type);
    const std::string guess = DidYouMean(key.Scalar(), names);
    return Bad(
        key,
        absl::StrCat(
            "unknown key ",
            Shown(key.Scalar()),
            In(where),
            guess.empty()
                ? absl::StrCat("; known are ", absl::StrJoin(names, ", "))
                : absl::StrCat("; did you mean '", guess, "'?")));
  }

  absl::Status ReadField(const YAML::Node& node,
                         const std::string& path,
                         const FieldDescriptor& field,
                         Message& out) {
    const auto& reflection = *out.GetReflection();
    const bool is_message =
        field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    if (!field.is_repeated()) {
      return is_message
                 ? ReadMessage(
                       node, path, *reflection.MutableMessage(&out, &field))
                 : ReadScalar(node, path, field, out);
    }
    if (node.IsNull()) return absl::OkStatus();
    if (!node.IsSequence()) {
      return Bad(node,
                 absl::StrCat(path, " must be a list, is ", KindOf(node)));
    }
    size_t index = 0;
    for (const YAML::Node& item : node) {
      if (++items_ > kItemsMax) {
        return Bad(
            node,
            absl::StrCat(
                path, ": the file has more than ", kItemsMax, " list items"));
      }
      const std::string at = absl::StrCat(path, "[", index++, "]");
      RETURN_IF_ERROR(
          is_message
              ? ReadMessage(item, at, *reflection.AddMessage(&out, &field))
              : ReadScalar(item, at, field, out));
    }
    return absl::OkStatus();
  }

  absl::Status ReadScalar(const YAML::Node& node,
                          const std::string& path,
                          const FieldDescriptor& field,
                          Message& out) const {
    const auto wrong = [&](const char* wanted) {
      return Bad(
          node, absl::StrCat(path, " must be ", wanted, ", is ", KindOf(node)));
    };
    const auto& reflection = *out.GetReflection();
    // A quoted scalar is text, whatever stands in the quotes.
    const bool plain = node.IsScalar() && node.Tag() != "!";
    const std::string text = node.IsScalar() ? node.Scalar() : "";
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING: {
        if (!node.IsScalar()) return wrong("text");
        const bool control = std::any_of(text.begin(), text.end(), [](char c) {
          return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
        });
        if (control) return wrong("text without control characters");
        reflection.SetString(&out, &field, text);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_BOOL: {
        if (!plain || (text != "true" && text != "false")) {
          return wrong("true or false");
        }
        reflection.SetBool(&out, &field, text == "true");
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_INT32: {
        int32_t value = 0;
        if (!plain || !absl::SimpleAtoi(text, &value)) {
          return wrong("a whole number of 32 bits");
        }
        if (field.is_repeated()) {
          reflection.AddInt32(&out, &field, value);
        } else {
          reflection.SetInt32(&out, &field, value);
        }
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_INT64: {
        int64_t value = 0;
        if (!plain || !absl::SimpleAtoi(text, &value)) {
          return wrong("a whole number of 64 bits");
        }
        reflection.SetInt64(&out, &field, value);
        return absl::OkStatus();
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        double value = 0;
        if (!plain || !absl::SimpleAtod(text, &value) ||
            !std::isfinite(value)) {
          return wrong("a number");
        }
        reflection.SetDouble(&out, &field, value);
        return absl::OkStatus();
      }
      default:
        return absl::InternalError(absl::StrCat("config.proto: ",
                                                path,
                                                " has a type that the YAML "
                                                "reader does not know"));
    }
  }

  const std::string& file_;
  const InitMessageFn& init_;
  int items_ = 0;
};

// Counts documents and looks at nothing.
class Ignore : public YAML::EventHandler {
 public:
  using Mark = YAML::Mark;
  using Style = YAML::EmitterStyle::value;
  void OnDocumentStart(const Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const Mark&, YAML::anchor_t) override {}
  void OnAlias(const Mark&, YAML::anchor_t) override {}
  void OnScalar(const Mark&,
                const std::string&,
                YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const Mark&,
                       const std::string&,
                       YAML::anchor_t,
                       Style) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const Mark&,
                  const std::string&,
                  YAML::anchor_t,
                  Style) override {}
  void OnMapEnd() override {}
};

// YAML::Load skips what follows the first document, and YAML::LoadAll never
// ends on some inputs (",,": an empty document for ever).
bool HasOneDocument(const std::string& yaml) {
  std::istringstream in(yaml);
  YAML::Parser parser(in);
  Ignore ignore;
  return !parser.HandleNextDocument(ignore) ||
         !parser.HandleNextDocument(ignore);
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string DidYouMean(std::string_view word,
                       const std::vector<std::string>& candidates) {
  constexpr size_t kWordMax = 64;  // the distance costs length x length
  if (word.size() > kWordMax) return "";
  std::string best;
  // Two swapped letters are two edits; in a short word that is too much.
  const size_t most =
      word.size() <= 3 ? 1 : std::max<size_t>(2, word.size() / 3);
  size_t least = most + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < least) {
      least = distance;
      best = candidate;
    }
  }
  return best;
}

absl::Status ReadYaml(std::string_view yaml,
                      const std::string& file_name,
                      const InitMessageFn& init,
                      Message& out) {
  if (yaml.size() > limits::kConfigFileBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ": larger than ", limits::kConfigFileBytesMax, " bytes"));
  }
  try {
    const std::string text(yaml);
    if (!HasOneDocument(text)) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_name,
          ": holds more than one YAML document, or stray text after it"));
    }
    const YAML::Node root = YAML::Load(text);
    return Reader(file_name, init).ReadMessage(root, "", out);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ":", error.mark.line + 1, ": broken YAML: ", error.msg));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_name, ": broken YAML: ", error.what()));
  }
}

}  // namespace conclave::config
