// SPDX-License-Identifier: Apache-2.0
#include "common/config/links.h"

#include <google/protobuf/descriptor.h>
#include <yaml-cpp/emitter.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/config/read_file.h"
#include "common/config/yaml_reader.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::config {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

absl::Status Bad(const std::string& file,
                 const std::string& field,
                 const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", field, " ", why));
}

// No measured number is below zero.
absl::Status CheckNumbers(const std::string& file,
                          const std::string& at,
                          const Message& message) {
  const auto* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor* field = type->field(i);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_DOUBLE) continue;
    const double value = message.GetReflection()->GetDouble(message, field);
    if (value >= 0) continue;
    return Bad(file,
               absl::StrCat(at, field->name()),
               absl::StrCat("is ", value, ", below 0"));
  }
  return absl::OkStatus();
}

absl::Status CheckSteps(const std::string& file,
                        const v1::MeasuredCoordinator& coordinator) {
  int32_t last = 0;
  for (int i = 0; i < coordinator.steps_size(); ++i) {
    const v1::MeasuredStep& step = coordinator.steps(i);
    const std::string at = absl::StrCat("coordinator.steps[", i, "].");
    RETURN_IF_ERROR(CheckNumbers(file, at, step));
    if (step.sequences() <= last) {
      return Bad(file,
                 at + "sequences",
                 absl::StrCat("is ",
                              step.sequences(),
                              " after ",
                              last,
                              "; steps ascend from 1"));
    }
    last = step.sequences();
    if (step.step_us() <= 0 || step.overlap_us() > step.step_us()) {
      return Bad(
          file, at + "step_us", "must be above 0 and not below overlap_us");
    }
  }
  return absl::OkStatus();
}

absl::Status Check(const std::string& file, const v1::Links& links) {
  RETURN_IF_ERROR(CheckNumbers(file, "coordinator.", links.coordinator()));
  RETURN_IF_ERROR(CheckSteps(file, links.coordinator()));
  if (links.workers_size() > limits::kWorkersMax) {
    return Bad(file,
               "workers",
               absl::StrCat("has more than ", limits::kWorkersMax, " items"));
  }
  std::set<std::string> names;
  for (int i = 0; i < links.workers_size(); ++i) {
    const v1::MeasuredWorker& worker = links.workers(i);
    const std::string at = absl::StrCat("workers[", i, "].");
    if (worker.name().empty()) return Bad(file, at + "name", "is missing");
    if (!names.insert(worker.name()).second) {
      return Bad(file,
                 at + "name",
                 absl::StrCat("'", worker.name(), "' stands there twice"));
    }
    RETURN_IF_ERROR(CheckNumbers(file, at, worker));
  }
  return absl::OkStatus();
}

// Fields that are set, in the order of the schema.
void Emit(const Message& message, YAML::Emitter& out) {
  const auto& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  out << YAML::BeginMap;
  for (const FieldDescriptor* field : fields) {
    out << YAML::Key << field->name() << YAML::Value;
    if (field->is_repeated()) {
      out << YAML::BeginSeq;
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        Emit(reflection.GetRepeatedMessage(message, field, i), out);
      }
      out << YAML::EndSeq;
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      Emit(reflection.GetMessage(message, field), out);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      out << YAML::DoubleQuoted << reflection.GetString(message, field);
    } else if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
      out << reflection.GetInt32(message, field);
    } else {
      out << absl::StrFormat("%.6g", reflection.GetDouble(message, field));
    }
  }
  out << YAML::EndMap;
}

}  // namespace

absl::StatusOr<v1::Links> ParseLinks(std::string_view yaml,
                                     const std::string& file_name) {
  v1::Links links;
  RETURN_IF_ERROR(ReadYaml(
      yaml, file_name, [](Message&) {}, links));
  RETURN_IF_ERROR(Check(file_name, links));
  return links;
}

absl::StatusOr<v1::Links> LoadLinks(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string yaml,
                   ReadFile(path, limits::kConfigFileBytesMax));
  return ParseLinks(yaml, path);
}

std::string LinksToYaml(const v1::Links& links) {
  YAML::Emitter out;
  Emit(links, out);
  return absl::StrCat(out.c_str(), "\n");
}

const v1::MeasuredWorker* FindMeasured(const v1::Links& links,
                                       std::string_view name) {
  for (const v1::MeasuredWorker& worker : links.workers()) {
    if (worker.name() == name) return &worker;
  }
  return nullptr;
}

}  // namespace conclave::config
