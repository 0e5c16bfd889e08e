// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using testing::CheckpointOptions;
using ::testing::HasSubstr;
using testing::PlannedTensor;
using testing::WriteCheckpoint;

class CheckpointTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() {
    return Checkpoint::Open(folder_.string());
  }
  std::string Error() {
    const absl::Status status = Open().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }
  std::string ErrorWith(std::function<void(std::vector<PlannedTensor>&)> edit) {
    WriteCheckpoint(folder_, {.mtp = true, .edit = std::move(edit)});
    return Error();
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name) << text;
  }

  testing::TempFolder temp_;
  const std::filesystem::path& folder_ = temp_.path();
};

PlannedTensor& Named(std::vector<PlannedTensor>& plan, std::string_view key) {
  return *std::ranges::find(plan, key, &PlannedTensor::key);
}

TEST_F(CheckpointTest, EveryLayoutOpens) {
  for (const char* prefix :
       {"model.language_model.", "model.", "language_model.model."}) {
    for (const bool fused : {true, false}) {
      for (const int files : {1, 3}) {
        for (const DType dtype : {DType::kBF16, DType::kF32}) {
          temp_.Clear();
          WriteCheckpoint(folder_,
                          {.dtype = dtype,
                           .fused = fused,
                           .mtp = fused,
                           .files = files,
                           .prefix = prefix});
          const auto opened = Open();
          ASSERT_TRUE(opened.ok()) << prefix << fused << opened.status();
          EXPECT_TRUE((*opened)->Has("layers.3.self_attn.q_proj.weight"));
          EXPECT_EQ((*opened)->Has("layers.0.mlp.experts.gate_up_proj"), fused);
          EXPECT_EQ((*opened)->Has("mtp.fc.weight"), fused);
        }
      }
    }
  }
}

TEST_F(CheckpointTest, MtpMayBeLeftOutButNotInParts) {
  const auto is_mtp = [](const PlannedTensor& t) {
    return t.key.starts_with("mtp.");
  };
  WriteCheckpoint(folder_, {.mtp = true, .edit = [&](auto& plan) {
                              std::erase_if(plan, is_mtp);
                            }});
  EXPECT_TRUE(Open().ok()) << Open().status();
  EXPECT_THAT(ErrorWith([](auto& plan) {
                std::erase_if(plan, [](const PlannedTensor& t) {
                  return t.key == "mtp.layers.0.mlp.experts.down_proj";
                });
              }),
              HasSubstr("\"mtp.layers.0.mlp.experts.down_proj\" with shape "
                        "[8, 64, 32] is missing"));
}

TEST_F(CheckpointTest, VisionIsSkipped) {
  WriteCheckpoint(
      folder_, {.edit = [](auto& plan) {
        plan.push_back({"model.visual.pos_embed.weight", "", "F16", {4, 4}});
        plan.push_back({"visual.x", "", "BF16", {2}});
      }});
  EXPECT_TRUE(Open().ok()) << Open().status();
}

TEST_F(CheckpointTest, MissingTensorIsNamed) {
  for (const char* key : {"layers.2.linear_attn.A_log",
                          "norm.weight",
                          "lm_head.weight",
                          "layers.1.mlp.experts.gate_up_proj",
                          "mtp.norm.weight"}) {
    EXPECT_THAT(ErrorWith([&](auto& plan) {
                  plan.erase(plan.begin() + (&Named(plan, key) - &plan[0]));
                }),
                AllOf(HasSubstr("model.safetensors: "), HasSubstr(key)));
  }
}

TEST_F(CheckpointTest, SurplusTensorIsNamedWithItsFile) {
  for (const char* name :
       {"model.language_model.layers.4.input_layernorm.weight",
        "model.language_model.layers.0.self_attn.q_proj.weight",
        "model.language_model.layers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "mtp.layers.1.input_layernorm.weight",
        "something"}) {
    EXPECT_THAT(ErrorWith([&](auto& plan) {
                  plan.push_back({name, name, "BF16", {64}});
                }),
                AllOf(HasSubstr("model.safetensors: tensor"), HasSubstr(name)));
  }
}

TEST_F(CheckpointTest, WrongShapeAndTypeAreNamed) {
  EXPECT_THAT(
      ErrorWith([](auto& plan) {
        Named(plan, "layers.0.mlp.experts.gate_up_proj").shape = {8, 64, 32};
      }),
      AllOf(HasSubstr("model.safetensors: tensor "
                      "\"model.language_model.layers.0.mlp.experts."
                      "gate_up_proj\": is BF16 [8, 64, 32]"),
            HasSubstr("asks for shape [8, 64, 64]")));
  EXPECT_THAT(
      ErrorWith([](auto& plan) {
        Named(plan, "layers.0.linear_attn.conv1d.weight").shape = {64, 4};
      }),
      HasSubstr("conv1d.weight\": is BF16 [64, 4]"));
  EXPECT_THAT(ErrorWith([](auto& plan) {
                Named(plan, "embed_tokens.weight").dtype = "F16";
              }),
              AllOf(HasSubstr("embed_tokens.weight\": is F16 [128, 64]"),
                    HasSubstr("only BF16 and F32")));
}

TEST_F(CheckpointTest, Bf16Decays) {
  WriteCheckpoint(folder_, {.edit = [](auto& plan) {
                    Named(plan, "layers.0.linear_attn.A_log").dtype = "BF16";
                  }});
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->ReadFloats("layers.0.linear_attn.A_log")->size(), 2u);
}

TEST_F(CheckpointTest, IndexAndFilesMustAgree) {
  const std::string index = "model.safetensors.index.json";
  const auto rewrite = [&](const std::string& from, const std::string& to) {
    temp_.Clear();
    WriteCheckpoint(folder_, {.files = 2});
    std::ifstream in(folder_ / index);
    std::string text((std::istreambuf_iterator<char>(in)), {});
    const size_t at = text.find(from);
    ASSERT_NE(at, text.npos);
    Write(index, text.replace(at, from.size(), to));
  };
  const std::string lm = "\"lm_head.weight\":\"model-0.safetensors\"";
  rewrite(lm, "\"lm_head.weight\":\"model-1.safetensors\"");
  EXPECT_THAT(Error(),
              AllOf(HasSubstr(index),
                    HasSubstr("lm_head.weight"),
                    HasSubstr("does not have it")));
  rewrite(lm + ",", "");
  EXPECT_THAT(Error(),
              AllOf(HasSubstr("model-0.safetensors: tensor "
                              "\"lm_head.weight\" does not stand in"),
                    HasSubstr(index)));
  rewrite(lm, lm + ",\"ghost\":\"model-9.safetensors\"");
  EXPECT_THAT(Error(), HasSubstr("\"model-9.safetensors\", which cannot be"));
  rewrite(lm, lm + ",\"ghost\":\"model-1.safetensors\"");
  EXPECT_THAT(Error(), HasSubstr("\"ghost\" is in \"model-1.safetensors\""));
  rewrite(lm, lm + "," + lm);
  EXPECT_THAT(Error(), HasSubstr("\"lm_head.weight\" stands twice"));
  rewrite(lm, "\"lm_head.weight\":\"../model-0.safetensors\"");
  EXPECT_THAT(Error(), HasSubstr("name of a file in the same folder"));
  rewrite("weight_map", "weight_mop");
  EXPECT_THAT(Error(), HasSubstr("weight_map is missing"));
  rewrite("{", "");
  EXPECT_THAT(Error(), HasSubstr("broken JSON"));
}

TEST_F(CheckpointTest, TheSameTensorInTwoFilesIsAnError) {
  WriteCheckpoint(folder_, {.files = 2, .edit = [](auto& plan) {
                              PlannedTensor twice = Named(plan, "norm.weight");
                              twice.file = 1 - twice.file;
                              plan.push_back(twice);
                            }});
  // The index may name a tensor once; make it so.
  std::ifstream in(folder_ / "model.safetensors.index.json");
  std::string text((std::istreambuf_iterator<char>(in)), {});
  const std::string one =
      ",\"model.language_model.norm.weight\":\"model-0.safetensors\"";
  const std::string name = "\"model.language_model.norm.weight\"";
  const size_t first = text.find(name);
  const size_t second = text.find(name, first + 1);
  ASSERT_NE(second, text.npos);
  text.erase(second - 1, one.size());
  Write("model.safetensors.index.json", text);
  EXPECT_THAT(Error(), AllOf(HasSubstr("norm.weight"), HasSubstr("too")));
}

TEST_F(CheckpointTest, TwoListsOfTensorsContradict) {
  WriteCheckpoint(folder_, {.files = 2});
  WriteCheckpoint(folder_, {.files = 1});
  EXPECT_THAT(Error(),
              AllOf(HasSubstr("index.json: does not name "
                              "model.safetensors"),
                    HasSubstr("remove one of them")));
}

TEST_F(CheckpointTest, GenerationConfigDecidesTheEnd) {
  WriteCheckpoint(folder_, {});
  EXPECT_EQ((*Open())->config().eos_token_ids, std::vector<int32_t>{0});
  Write("generation_config.json", "{\"eos_token_id\":[3,0],\"top_k\":20}");
  EXPECT_EQ((*Open())->config().eos_token_ids, (std::vector<int32_t>{3, 0}));
  Write("generation_config.json", "{\"top_k\":20}");
  EXPECT_EQ((*Open())->config().eos_token_ids, std::vector<int32_t>{0});
  Write("generation_config.json", "{\"eos_token_id\":[3,999]}");
  EXPECT_THAT(Error(), HasSubstr("generation_config.json: eos_token_id"));
}

TEST_F(CheckpointTest, EmptyFolderIsNamed) {
  std::filesystem::create_directories(folder_);
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Open().status().message()), HasSubstr("config.json"));
  Write("config.json", testing::ConfigJson({}));
  EXPECT_EQ(Open().status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Open().status().message()),
              HasSubstr("has neither model.safetensors nor"));
}

TEST_F(CheckpointTest, ReadBytesIsBounded) {
  WriteCheckpoint(folder_, {});
  const auto opened = Open();
  ASSERT_TRUE(opened.ok());
  const auto tensor = (*opened)->Find("norm.weight");
  std::vector<std::byte> out(8);
  EXPECT_TRUE((*opened)->ReadBytes(*tensor, 120, out).ok());
  EXPECT_TRUE(std::ranges::equal(out, tensor->data.subspan(120)));
  EXPECT_EQ((*opened)->ReadBytes(*tensor, 121, out).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*opened)->ReadBytes(*tensor, UINT64_MAX, out).code(),
            absl::StatusCode::kOutOfRange);
}

}  // namespace
}  // namespace conclave::checkpoint
