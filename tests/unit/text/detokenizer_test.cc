// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/detokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/testing/seeded.h"

namespace conclave::text {
namespace {

const std::string kBad = "\xEF\xBF\xBD";

std::string Whole(const std::string& bytes) {
  Detokenizer detokenizer;
  const std::string text = detokenizer.Push(bytes);
  return text + detokenizer.Finish();
}

TEST(Detokenizer, HoldsBackAnIncompleteCharacter) {
  Detokenizer detokenizer;
  EXPECT_EQ(detokenizer.Push("a\xF0\x9F"), "a");
  EXPECT_EQ(detokenizer.Push("\x9A"), "");
  EXPECT_EQ(detokenizer.Push("\x80z"), "\xF0\x9F\x9A\x80z");
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST(Detokenizer, TheHeldRestIsReplacedAtTheEnd) {
  Detokenizer detokenizer;
  EXPECT_EQ(detokenizer.Push("a\xE2\x82"), "a");
  EXPECT_EQ(detokenizer.Finish(), kBad);
  EXPECT_EQ(detokenizer.Finish(), "");
}

// What Python's bytes.decode("utf-8", "replace") gives.
TEST(Detokenizer, InvalidBytesAreReplacedAsPythonDoes) {
  EXPECT_EQ(Whole("\xFF"), kBad);
  EXPECT_EQ(Whole("\x80\x80"), kBad + kBad);
  EXPECT_EQ(Whole("\xC0\x80"), kBad + kBad);
  EXPECT_EQ(Whole("\xE0\x80\x80"), kBad + kBad + kBad);
  EXPECT_EQ(Whole("\xED\xA0\x80"), kBad + kBad + kBad);
  EXPECT_EQ(Whole("\xF4\x90\x80\x80"), kBad + kBad + kBad + kBad);
  EXPECT_EQ(Whole("\xE2\x82x"), kBad + "x");
  EXPECT_EQ(Whole("\xF0\x9F\x9Ax"), kBad + "x");
  EXPECT_EQ(Whole("\xE2\xE2\x82\xAC"), kBad + "\xE2\x82\xAC");
  EXPECT_EQ(Whole("\xC3\xC3\xA9"), kBad + "\xC3\xA9");
}

// The tables of the Unicode standard (3-7), written out as a second decoder.
size_t ValidPrefix(const std::string& s, size_t at, bool* whole) {
  struct Row {
    uint8_t lead[2];
    uint8_t second[2];
    size_t length;
  };
  static constexpr Row kRows[] = {{{0x00, 0x7F}, {0, 0}, 1},
                                  {{0xC2, 0xDF}, {0x80, 0xBF}, 2},
                                  {{0xE0, 0xE0}, {0xA0, 0xBF}, 3},
                                  {{0xE1, 0xEC}, {0x80, 0xBF}, 3},
                                  {{0xED, 0xED}, {0x80, 0x9F}, 3},
                                  {{0xEE, 0xEF}, {0x80, 0xBF}, 3},
                                  {{0xF0, 0xF0}, {0x90, 0xBF}, 4},
                                  {{0xF1, 0xF3}, {0x80, 0xBF}, 4},
                                  {{0xF4, 0xF4}, {0x80, 0x8F}, 4}};
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
  *whole = false;
  for (const Row& row : kRows) {
    if (byte(at) < row.lead[0] || byte(at) > row.lead[1]) continue;
    size_t n = 1;
    while (n < row.length && at + n < s.size()) {
      const uint8_t low = n == 1 ? row.second[0] : 0x80;
      const uint8_t high = n == 1 ? row.second[1] : 0xBF;
      if (byte(at + n) < low || byte(at + n) > high) break;
      ++n;
    }
    *whole = n == row.length;
    return n;
  }
  return 1;
}

std::string Reference(const std::string& bytes) {
  std::string out;
  for (size_t at = 0; at < bytes.size();) {
    bool whole = false;
    const size_t n = ValidPrefix(bytes, at, &whole);
    out += whole ? bytes.substr(at, n) : kBad;
    at += n;
  }
  return out;
}

TEST(Detokenizer, AnyBytesInAnyPiecesDecodeAsAtOnce) {
  testing::Seeded random(3);
  // Bytes near the edges of the tables, so that many sequences are valid.
  static constexpr uint8_t kBytes[] = {0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0,
                                       0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xED,
                                       0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF};
  for (int i = 0; i < 3000; ++i) {
    std::string bytes;
    for (int32_t n = random.Int(24); n > 0; --n) {
      bytes += static_cast<char>(kBytes[random.Int(std::size(kBytes))]);
    }
    Detokenizer detokenizer;
    std::string streamed;
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = 1 + random.Int(4);
      streamed += detokenizer.Push(std::string_view(bytes).substr(at, n));
      at += n;
    }
    streamed += detokenizer.Finish();
    ASSERT_EQ(streamed, Reference(bytes));
    ASSERT_EQ(Whole(bytes), streamed);
  }
}

}  // namespace
}  // namespace conclave::text
