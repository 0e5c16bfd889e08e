// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/pretokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "coordinator/text/unicode.h"
#include "tests/testing/seeded.h"

namespace conclave::text {
namespace {

using Pieces = std::vector<std::string_view>;

// The examples of docs/qwen3.5-moe 4.1.
TEST(Pretokenizer, TheExamplesOfTheModelsDocument) {
  EXPECT_EQ(
      Pretokenize("I'm 42 years old.\n\n  Hello"),
      (Pieces{
          "I", "'m", " ", "4", "2", " years", " old", ".\n\n", " ", " Hello"}));
  EXPECT_EQ(Pretokenize("a  b   \n  c  "),
            (Pieces{"a", " ", " b", "   \n", " ", " c", "  "}));
  EXPECT_EQ(Pretokenize("I'LL they've 'tis"),
            (Pieces{"I", "'LL", " they", "'ve", " '", "tis"}));
  EXPECT_EQ(Pretokenize("foo_bar(\"a\")"),
            (Pieces{"foo", "_bar", "(\"", "a", "\")"}));
  EXPECT_EQ(Pretokenize("  \n\n \n x"), (Pieces{"  \n\n \n", " x"}));
}

TEST(Pretokenizer, MarksJoinLetters) {
  // Devanagari with vowel signs; an acute accent over q, which NFC leaves.
  EXPECT_EQ(Pretokenize("\u0939\u093f\u0928\u094d\u0926\u0940 q\u0301r"),
            (Pieces{"\u0939\u093f\u0928\u094d\u0926\u0940", " q\u0301r"}));
}

TEST(Pretokenizer, NumbersOfAnyScriptAreSingle) {
  EXPECT_EQ(Pretokenize("x\u0661\u0662 \u216b"),
            (Pieces{"x", "\u0661", "\u0662", " ", "\u216b"}));
}

TEST(Pretokenizer, EmptyTextHasNoPieces) {
  EXPECT_TRUE(Pretokenize("").empty());
}

TEST(Pretokenizer, PiecesCoverAnyText) {
  static const std::vector<std::string> kParts = {"a",
                                                  "'s",
                                                  "'",
                                                  " ",
                                                  "\n",
                                                  "\r",
                                                  "\t",
                                                  "7",
                                                  ".",
                                                  "\u00e9",
                                                  "\u0301",
                                                  "\u3000",
                                                  "\u00a0",
                                                  "\U0001f680",
                                                  "\u017f",
                                                  "_",
                                                  "\u0085",
                                                  "\x01"};
  testing::Seeded random(11);
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (int32_t n = random.Int(20); n > 0; --n) {
      text += kParts[random.Int(static_cast<int32_t>(kParts.size()))];
    }
    std::string joined;
    for (const std::string_view piece : Pretokenize(text)) {
      ASSERT_FALSE(piece.empty()) << text;
      ASSERT_EQ(FindInvalidUtf8(piece), std::string_view::npos) << text;
      joined += piece;
    }
    ASSERT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace conclave::text
