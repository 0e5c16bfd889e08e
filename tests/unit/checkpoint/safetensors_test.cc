// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <span>
#include <string>

#include "tests/testing/temp_folder.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

std::string File(std::string header, size_t data_bytes) {
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  std::string out(reinterpret_cast<const char*>(&length), 8);
  out += header;
  for (size_t i = 0; i < data_bytes; ++i) out += static_cast<char>(i);
  return out;
}

const char kTwo[] =
    R"({"__metadata__":{"format":"pt"},)"
    R"("b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
    R"("a":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}})";

TEST(Safetensors, ReadsNamesShapesAndData) {
  const std::string file = File(kTwo, 12);
  const auto tensors = ParseSafetensors(Bytes(file), "x.safetensors");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  const TensorView& a = (*tensors)[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(a.dtype, DType::kBF16);
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 1}));
  ASSERT_EQ(a.data.size(), 4u);
  EXPECT_EQ(a.data[0], std::byte{8});
  EXPECT_EQ(a.file_offset, file.size() - 4);
  EXPECT_EQ((*tensors)[1].name, "b");
  EXPECT_EQ((*tensors)[1].data[0], std::byte{0});
}

TEST(Safetensors, EveryTruncationIsAnErrorThatNamesTheFile) {
  const std::string file = File(kTwo, 12);
  for (size_t size = 0; size < file.size(); ++size) {
    // A copy of its own, so that a sanitizer sees a read past the end.
    const std::string cut(file.data(), size);
    const auto status = ParseSafetensors(Bytes(cut), "x.safetensors").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(std::string(status.message()), HasSubstr("x.safetensors"));
  }
}

TEST(Safetensors, HeaderLengthIsBounded) {
  for (const uint64_t length : {uint64_t{100} << 20 | 1, UINT64_MAX - 7}) {
    std::string file = File(kTwo, 12);
    file.replace(0, 8, reinterpret_cast<const char*>(&length), 8);
    const auto status = ParseSafetensors(Bytes(file), "x").status();
    EXPECT_THAT(std::string(status.message()), HasSubstr("above the limit"));
  }
  std::string file = File(kTwo, 12);
  const uint64_t length = file.size() - 7;
  file.replace(0, 8, reinterpret_cast<const char*>(&length), 8);
  EXPECT_THAT(
      std::string(ParseSafetensors(Bytes(file), "x").status().message()),
      HasSubstr("leaves the file"));
}

std::string Entry(const std::string& dtype,
                  const std::string& shape,
                  const std::string& offsets) {
  return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape +
         R"(,"data_offsets":)" + offsets + "}}";
}

TEST(Safetensors, EachLieOfAnEntryIsNamed) {
  const struct {
    std::string header;
    const char* error;
  } kCases[] = {
      {Entry("\"F33\"", "[2]", "[0,8]"), "unknown dtype \"F33\""},
      {Entry("4", "[2]", "[0,8]"), "dtype must be a string"},
      {Entry("\"F32\"", "2", "[0,8]"), "shape must be a list"},
      {Entry("\"F32\"", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), "at most 8 sizes"},
      {Entry("\"F32\"", "[-2]", "[0,8]"), "no whole number >= 0"},
      {Entry("\"F32\"", "[2.0]", "[0,8]"), "no whole number >= 0"},
      {Entry("\"F32\"", "[18446744073709551615]", "[0,8]"), "no whole number"},
      {Entry("\"F32\"", "[4611686018427387904,4]", "[0,8]"), "overflows 64"},
      {Entry("\"F32\"", "[9223372036854775807]", "[0,8]"), "overflows 64"},
      {Entry("\"F32\"", "[2]", "[8,0]"), "data_offsets [8, 0) run back"},
      {Entry("\"F32\"", "[2]", "[-8,0]"), "two whole numbers"},
      {Entry("\"F32\"", "[2]", "[0]"), "two whole numbers"},
      {Entry("\"F32\"", "[2]", "\"0,8\""), "two whole numbers"},
      {Entry("\"F32\"", "[4]", "[0,16]"), "leave the file, which has 8 bytes"},
      {Entry("\"F32\"", "[1]", "[0,8]"), "hold 8 bytes, but F32 [1] needs 4"},
      {Entry("\"F32\"", "[3]", "[0,8]"), "hold 8 bytes, but F32 [3] needs 12"},
      {Entry("\"F32\"", "[1]", "[2,6]"), "not aligned"},
      {Entry("\"F32\"", "[1]", "[4,8]"),
       "4 bytes before its data belong to no"},
      {R"({"t":{"dtype":"F32","shape":[2]}})", "data_offsets is missing"},
      {R"({"t":{"dtype":"F32","data_offsets":[0,8]}})", "shape is missing"},
      {R"({"t":{"shape":[2],"data_offsets":[0,8]}})", "dtype is missing"},
      {R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})",
       "unknown field \"x\""},
      {R"({"t":7})", "entry must be a JSON object"},
  };
  for (const auto& c : kCases) {
    const std::string file = File(c.header, 8);
    const auto status = ParseSafetensors(Bytes(file), "x.safetensors").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.header;
    EXPECT_THAT(
        std::string(status.message()),
        AllOf(HasSubstr("x.safetensors: tensor \"t\""), HasSubstr(c.error)))
        << c.header;
  }
}

TEST(Safetensors, HeaderAsAWholeIsChecked) {
  const std::string two = R"("data_offsets":[0,8],"dtype":"F32","shape":[2]})";
  const struct {
    std::string header;
    const char* error;
  } kCases[] = {
      {R"({"a":{)" + two + R"(,"b":{)" + two + "}",
       "tensor \"b\": data overlaps that of \"a\""},
      {R"({"a":{)" + two + R"(,"a":{)" + two + "}",
       "the key \"a\" stands twice"},
      {R"({"a":{"shape":[2],)" + two + "}", "the key \"shape\" stands twice"},
      {"{}", "the last 8 bytes belong to no tensor"},
      {"[]", "header must be a JSON object"},
      {"{", "broken JSON"},
      {"{} {}", "broken JSON"},
      {"", "broken JSON"},
      {std::string(1000, '['), "broken JSON"},
      {"{\"\xff\":1}", "broken JSON"},
      {R"({"__metadata__":[]})", "__metadata__ must be a JSON object"},
      {R"({"__metadata__":{"a":1}})", "__metadata__: \"a\" is no string"},
  };
  for (const auto& c : kCases) {
    const std::string file = File(c.header, 8);
    const auto status = ParseSafetensors(Bytes(file), "x.safetensors").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.header;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("x.safetensors: "), HasSubstr(c.error)))
        << c.header;
  }
}

TEST(Safetensors, EmptyTensorsTakeNoSpace) {
  const std::string file =
      File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
           R"("none":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]},)"
           R"("scalar":{"dtype":"I8","shape":[],"data_offsets":[8,9]}})",
           9);
  const auto tensors = ParseSafetensors(Bytes(file), "x");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ((*tensors)[1].data.size(), 0u);
  EXPECT_EQ((*tensors)[2].data.size(), 1u);
}

TEST(SafetensorsFile, WhatCannotBeOpenedIsNamed) {
  const auto none = SafetensorsFile::Open("no/such.safetensors").status();
  EXPECT_EQ(none.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(none.message()), HasSubstr("no/such.safetensors"));
  const auto folder = SafetensorsFile::Open(::testing::TempDir()).status();
  EXPECT_EQ(folder.code(), absl::StatusCode::kInvalidArgument);
  // Opening a pipe must not wait for a writer.
  const testing::TempFolder temp;
  const std::string pipe = temp.path() / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(SafetensorsFile::Open(pipe).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsFile, ReadNoticesThatTheFileBecameShorter) {
  const testing::TempFolder temp;
  const std::string path = temp.path() / "shorter.safetensors";
  std::ofstream(path, std::ios::binary) << File(kTwo, 12);
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::resize_file(path, 20);
  std::vector<std::byte> out(4);
  EXPECT_EQ((*file)->Read(100, out).code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace conclave::checkpoint
