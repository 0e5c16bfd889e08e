// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/tokenizer.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "tests/testing/temp_folder.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr const char* kModel = "deploy/models/qwen3.5-moe-tiny";

const Tokenizer& Model() {
  static const auto* const kTokenizer = new std::unique_ptr<Tokenizer>(
      std::move(Tokenizer::Load(kModel)).value());
  return **kTokenizer;
}

json::object ModelFile() {
  std::ifstream file(std::string(kModel) + "/tokenizer.json");
  std::stringstream all;
  all << file.rdbuf();
  return json::parse(all.str()).as_object();
}

// The error of loading `text` as tokenizer.json; "" if it loads.
std::string LoadError(const std::string& text, const std::string& config = "") {
  testing::TempFolder folder;
  std::ofstream(folder.path() / "tokenizer.json") << text;
  if (!config.empty()) {
    std::ofstream(folder.path() / "tokenizer_config.json") << config;
  }
  const auto loaded = Tokenizer::Load(folder.path().string());
  return loaded.ok() ? "" : std::string(loaded.status().message());
}

// The same of the model's own file after a change.
std::string ErrorAfter(const std::function<void(json::object&)>& change) {
  json::object root = ModelFile();
  change(root);
  return LoadError(json::serialize(root));
}

json::object& Vocabulary(json::object& root) {
  return root["model"].as_object()["vocab"].as_object();
}

json::array& Merges(json::object& root) {
  return root["model"].as_object()["merges"].as_array();
}

void ExpectNames(const std::string& error, const std::string& what) {
  EXPECT_NE(error.find("tokenizer.json"), std::string::npos) << error;
  EXPECT_NE(error.find(what), std::string::npos) << error << "\n" << what;
}

TEST(Tokenizer, BadUtf8IsNamedByItsByte) {
  const auto error = [](const std::string& text) {
    return std::string(Model().Encode(text).status().message());
  };
  EXPECT_EQ(error("\xFF"), "text is not UTF-8 at byte 0");
  EXPECT_EQ(error("caf\xC3"), "text is not UTF-8 at byte 3");
  EXPECT_EQ(error("\xC3\xA9<think>\xED\xA0\x80"),
            "text is not UTF-8 at byte 9");
}

// A piece of 200 KB; quadratic work would run into the test's time limit.
TEST(Tokenizer, ALongRunOfOneLetter) {
  for (const std::string letter : {"a", "z", "\xC3\xA9"}) {
    std::string text;
    while (text.size() < 200'000) text += letter;
    const auto ids = Model().Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(Model().Decode(*ids, false), text);
  }
}

TEST(Tokenizer, UnusedIdsAreEmpty) {
  for (const int32_t id : {-1, Model().size(), 1 << 30}) {
    EXPECT_EQ(Model().Bytes(id), "");
    EXPECT_FALSE(Model().IsSpecial(id));
  }
  EXPECT_EQ(Model().AddedToken("<no such token>"), std::nullopt);
  const auto end = Model().AddedToken("<|im_end|>");
  ASSERT_TRUE(end.has_value());
  EXPECT_TRUE(Model().IsSpecial(*end));
  const auto think = Model().AddedToken("<think>");
  ASSERT_TRUE(think.has_value());
  EXPECT_FALSE(Model().IsSpecial(*think));
  EXPECT_EQ(Model().Decode({*think, *end}, true), "<think>");
}

TEST(TokenizerFile, TheUnchangedFileLoads) {
  EXPECT_EQ(ErrorAfter([](json::object&) {}), "");
}

TEST(TokenizerFile, BrokenFiles) {
  ExpectNames(LoadError(""), "broken JSON");
  ExpectNames(LoadError("{\"model\": "), "broken JSON");
  ExpectNames(LoadError("[]"), "must be a JSON object");
  ExpectNames(LoadError(std::string(5000, '[')), "broken JSON");
  testing::TempFolder empty;
  const auto loaded = Tokenizer::Load(empty.path().string());
  EXPECT_TRUE(absl::IsNotFound(loaded.status()));
  ExpectNames(std::string(loaded.status().message()), "cannot be read");
}

TEST(TokenizerFile, OtherKindsOfTokenizers) {
  ExpectNames(ErrorAfter([](json::object& root) {
                root["model"].as_object()["type"] = "WordPiece";
              }),
              "model.type");
  ExpectNames(
      ErrorAfter([](json::object& root) { root["normalizer"] = nullptr; }),
      "normalizer.type");
  ExpectNames(ErrorAfter([](json::object& root) {
                json::value& regex = root["pre_tokenizer"]
                                         .at("pretokenizers")
                                         .at(0)
                                         .at("pattern")
                                         .at("Regex");
                regex = std::string(regex.as_string()) + "|x";
              }),
              "pre_tokenizer");
  ExpectNames(ErrorAfter([](json::object& root) { root["decoder"] = 1; }),
              "decoder");
}

TEST(TokenizerFile, TheVocabularyLies) {
  const auto with = [](const std::string& token, const json::value& id) {
    return ErrorAfter(
        [&](json::object& root) { Vocabulary(root)[token] = id; });
  };
  ExpectNames(with("!", -1), "model.vocab[\"!\"]");
  ExpectNames(with("!", "0"), "model.vocab[\"!\"]");
  ExpectNames(with("!", int64_t{1} << 40), "model.vocab[\"!\"]");
  ExpectNames(with("a b", 1999), "model.vocab[\"a b\"]");
  ExpectNames(
      ErrorAfter([](json::object& root) { Vocabulary(root).erase("!"); }),
      "no token for byte 33");
  ExpectNames(ErrorAfter([](json::object& root) {
                root["model"].as_object()["vocab"] = json::array();
              }),
              "model.vocab");
}

TEST(TokenizerFile, TwoTokensMayNotShareAnId) {
  ExpectNames(ErrorAfter([](json::object& root) {
                Vocabulary(root)["!"] = Vocabulary(root)["a"];
              }),
              "model.vocab");
}

TEST(TokenizerFile, AnAddedTokenMayNotTakeAnIdOfTheVocabulary) {
  ExpectNames(ErrorAfter([](json::object& root) {
                json::array& added = root["added_tokens"].as_array();
                added[0].as_object()["id"] = Vocabulary(root)["a"];
              }),
              "added_tokens[0]");
}

TEST(TokenizerFile, TheMergesLie) {
  const auto first = [](const json::value& merge) {
    return ErrorAfter([&](json::object& root) { Merges(root)[0] = merge; });
  };
  ExpectNames(first("nospace"), "model.merges[0]");
  ExpectNames(first(7), "model.merges[0]");
  ExpectNames(first(json::array{"a"}), "model.merges[0]");
  ExpectNames(first(json::array{"a", 1}), "model.merges[0]");
  ExpectNames(first("z q"), "lacks");
  ExpectNames(ErrorAfter([](json::object& root) {
                root["model"].as_object()["merges"] = nullptr;
              }),
              "model.merges");
}

TEST(TokenizerFile, MergesMayBeWrittenAsText) {
  json::object root = ModelFile();
  for (json::value& merge : Merges(root)) {
    if (!merge.is_array()) continue;
    merge = std::string(merge.at(0).as_string()) + " " +
            std::string(merge.at(1).as_string());
  }
  testing::TempFolder folder;
  std::ofstream(folder.path() / "tokenizer.json") << json::serialize(root);
  const auto loaded = Tokenizer::Load(folder.path().string());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const std::string text = "The user asks the assistant something.";
  EXPECT_EQ((*loaded)->Encode(text).value(), Model().Encode(text).value());
}

TEST(TokenizerFile, TheAddedTokensLie) {
  const auto first = [](const char* key, const json::value& value) {
    return ErrorAfter([&](json::object& root) {
      root["added_tokens"].as_array()[0].as_object()[key] = value;
    });
  };
  ExpectNames(first("id", -5), "added_tokens[0]");
  ExpectNames(first("id", 1.5), "added_tokens[0]");
  ExpectNames(first("content", ""), "added_tokens[0]");
  ExpectNames(first("lstrip", true), "added_tokens[0]");
  ExpectNames(first("id", 2001), "stands twice");
  ExpectNames(first("content", "<|im_end|>"), "stands twice");
  const std::string config =
      R"({"added_tokens_decoder": {"2000": {"content": "<other>"}}})";
  EXPECT_NE(LoadError(json::serialize(ModelFile()), config)
                .find("tokenizer_config.json: added_tokens_decoder[2000]"),
            std::string::npos);
}

}  // namespace
}  // namespace conclave::text
