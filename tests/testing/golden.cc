// SPDX-License-Identifier: Apache-2.0
#include "tests/testing/golden.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "boost/json.hpp"

namespace conclave::testing {
namespace {

std::vector<int32_t> Ids(const boost::json::value& list) {
  std::vector<int32_t> out;
  for (const auto& id : list.as_array()) out.push_back(id.to_number<int32_t>());
  return out;
}

std::vector<GoldenPrompt> ReadPrompts() {
  std::ifstream in("tests/golden/prompts.json");
  const std::string text((std::istreambuf_iterator<char>(in)), {});
  const boost::json::value prompts = boost::json::parse(text);
  std::vector<GoldenPrompt> out;
  for (const auto& item : prompts.as_array()) {
    const auto& reference = item.at("fp32");
    GoldenPrompt prompt;
    prompt.name = item.at("name").as_string().c_str();
    prompt.text = item.at("text").as_string().c_str();
    prompt.ids = Ids(item.at("ids"));
    prompt.logits_from = reference.at("logits_from").to_number<int32_t>();
    prompt.greedy_ids = Ids(reference.at("greedy_ids"));
    if (!reference.at("eos_at").is_null()) {
      prompt.eos_at = reference.at("eos_at").to_number<int32_t>();
    }
    out.push_back(std::move(prompt));
  }
  return out;
}

template <typename T>
std::vector<T> Read(const checkpoint::SafetensorsFile& file,
                    const std::string& name) {
  const auto tensor = file.Find(name);
  EXPECT_TRUE(tensor.ok()) << tensor.status();
  if (!tensor.ok()) return {};
  std::vector<T> out(tensor->data.size() / sizeof(T));
  std::memcpy(out.data(), tensor->data.data(), out.size() * sizeof(T));
  return out;
}

}  // namespace

std::vector<int32_t> GoldenPrompt::greedy_until_eos() const {
  if (!eos_at.has_value()) return greedy_ids;
  return {greedy_ids.begin(), greedy_ids.begin() + *eos_at + 1};
}

const std::vector<GoldenPrompt>& GoldenPrompts() {
  static const auto* const prompts =
      new std::vector<GoldenPrompt>(ReadPrompts());
  return *prompts;
}

const GoldenPrompt& FindGolden(const std::string& name) {
  for (const GoldenPrompt& prompt : GoldenPrompts()) {
    if (prompt.name == name) return prompt;
  }
  ADD_FAILURE() << "no golden prompt " << name;
  return GoldenPrompts().front();
}

GoldenTensors::GoldenTensors(const std::string& prompt)
    : GoldenTensors(At(prompt + ".fp32")) {}

GoldenTensors GoldenTensors::At(const std::string& name) {
  GoldenTensors out;
  auto file = checkpoint::SafetensorsFile::Open("tests/golden/" + name +
                                                ".safetensors");
  EXPECT_TRUE(file.ok()) << file.status();
  if (file.ok()) out.file_ = *std::move(file);
  return out;
}

bool GoldenTensors::Has(const std::string& tensor) const {
  return file_->Find(tensor).ok();
}

std::vector<float> GoldenTensors::Floats(const std::string& tensor) const {
  return Read<float>(*file_, tensor);
}

std::vector<int32_t> GoldenTensors::Ints(const std::string& tensor) const {
  return Read<int32_t>(*file_, tensor);
}

const checkpoint::Checkpoint& TinyModel() {
  static const checkpoint::Checkpoint* const model = [] {
    auto opened =
        checkpoint::Checkpoint::Open("deploy/models/qwen3.5-moe-tiny");
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? opened->release() : nullptr;
  }();
  return *model;
}

}  // namespace conclave::testing
