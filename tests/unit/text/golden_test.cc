// SPDX-License-Identifier: Apache-2.0
// The reference outputs of transformers: tokenizer.jsonl, chat_template.jsonl
// and the texts and ids of prompts.json.
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <sstream>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/tokenizer.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr const char* kModel = "deploy/models/qwen3.5-moe-tiny";

std::vector<json::value> Lines(const std::string& path) {
  std::ifstream file(path);
  std::vector<json::value> out;
  for (std::string line; std::getline(file, line);) {
    out.push_back(json::parse(line));
  }
  return out;
}

std::vector<int32_t> Ids(const json::value& value) {
  std::vector<int32_t> out;
  for (const json::value& id : value.as_array()) {
    out.push_back(static_cast<int32_t>(id.as_int64()));
  }
  return out;
}

std::string Content(const json::object& message) {
  const json::value* content = message.if_contains("content");
  if (content == nullptr || content->is_null()) return "";
  if (content->is_string()) return std::string(content->get_string());
  std::string out;
  for (const json::value& part : content->as_array()) {
    out += part.as_object().at("text").as_string();
  }
  return out;
}

std::vector<Message> Messages(const json::value& list) {
  std::vector<Message> out;
  for (const json::value& value : list.as_array()) {
    const json::object& m = value.as_object();
    Message message{.role = std::string(m.at("role").as_string()),
                    .content = Content(m),
                    .reasoning_content = {},
                    .tool_calls = {}};
    if (const json::value* r = m.if_contains("reasoning_content");
        r != nullptr && r->is_string()) {
      message.reasoning_content = std::string(r->get_string());
    }
    if (const json::value* calls = m.if_contains("tool_calls");
        calls != nullptr && calls->is_array()) {
      for (const json::value& call : calls->get_array()) {
        const json::object& f = call.as_object().at("function").as_object();
        message.tool_calls.push_back(
            {.id = "",
             .name = std::string(f.at("name").as_string()),
             .arguments_json = json::serialize(f.at("arguments"))});
      }
    }
    out.push_back(std::move(message));
  }
  return out;
}

std::vector<Tool> Tools(const json::value* list) {
  std::vector<Tool> out;
  if (list == nullptr || !list->is_array()) return out;
  for (const json::value& value : list->get_array()) {
    const json::object& f = value.as_object().at("function").as_object();
    out.push_back({.name = std::string(f.at("name").as_string()),
                   .json = json::serialize(value),
                   .parameters_json = json::serialize(f.at("parameters"))});
  }
  return out;
}

TemplateOptions Options(const json::object& entry) {
  TemplateOptions options;
  if (const json::value* v = entry.if_contains("enable_thinking");
      v != nullptr && v->is_bool()) {
    options.enable_thinking = v->get_bool();
  }
  if (const json::value* v = entry.if_contains("add_generation_prompt");
      v != nullptr && v->is_bool()) {
    options.add_generation_prompt = v->get_bool();
  }
  return options;
}

class TextGolden : public ::testing::Test {
 protected:
  void SetUp() override {
    auto tokenizer = Tokenizer::Load(kModel);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TextGolden, EveryStringEncodesAndDecodes) {
  const auto lines = Lines("tests/golden/tokenizer.jsonl");
  ASSERT_EQ(lines.size(), 150u);
  for (const json::value& line : lines) {
    const json::object& entry = line.as_object();
    const std::string text(entry.at("text").as_string());
    const auto ids = tokenizer_->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(entry.at("ids"))) << text;
    EXPECT_EQ(tokenizer_->Decode(*ids, false),
              std::string(entry.at("decoded").as_string()));
    EXPECT_EQ(tokenizer_->Decode(*ids, true),
              std::string(entry.at("decoded_skip_special").as_string()));
  }
}

TEST_F(TextGolden, EveryTemplateRenders) {
  const auto lines = Lines("tests/golden/chat_template.jsonl");
  ASSERT_EQ(lines.size(), 22u);
  for (const json::value& line : lines) {
    const json::object& entry = line.as_object();
    const auto text = RenderChat(Messages(entry.at("messages")),
                                 Tools(entry.if_contains("tools")),
                                 Options(entry));
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*text, std::string(entry.at("rendered").as_string()));
  }
}

TEST_F(TextGolden, EveryPromptHasItsIds) {
  std::ifstream file("tests/golden/prompts.json");
  std::stringstream all;
  all << file.rdbuf();
  const json::value prompts = json::parse(all.str());
  ASSERT_EQ(prompts.as_array().size(), 12u);
  for (const json::value& value : prompts.as_array()) {
    const json::object& entry = value.as_object();
    const std::string text(entry.at("text").as_string());
    const auto ids = tokenizer_->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, Ids(entry.at("ids"))) << entry.at("name");
    if (!entry.at("messages").is_array()) continue;
    const auto rendered = RenderChat(Messages(entry.at("messages")),
                                     Tools(entry.if_contains("tools")),
                                     Options(entry));
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(*rendered, text);
  }
}

}  // namespace
}  // namespace conclave::text
