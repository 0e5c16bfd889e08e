// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/model/group_decoder.h"
#include "coordinator/model/weights.h"
#include "tests/testing/group_world.h"
#include "tests/testing/model_runner.h"

namespace conclave::testing {

struct GroupSetting {
  GroupCase where;
  model::GroupForm form = model::GroupForm::kSymmetric;
  std::vector<int32_t> shares = {};
  int32_t micro_batches = 1;
  uint64_t logit_bytes = model::kLogitBytes;

  std::string Name() const {
    std::string out =
        where.Name() +
        (form == model::GroupForm::kLone ? "_lone" : "_symmetric");
    for (const int32_t share : shares) out += "_" + std::to_string(share);
    return out;
  }
};

inline void PrintTo(const GroupSetting& setting, std::ostream* out) {
  *out << setting.Name();
}

inline std::vector<GroupSetting> GroupSettings() {
  std::vector<GroupSetting> out;
  for (const GroupCase& where : kGroupCases) {
    for (const auto form :
         {model::GroupForm::kSymmetric, model::GroupForm::kLone}) {
      // The kernels want two GDN heads of a rank, the embedded model has four.
      const bool few =
          where.gpus && where.ranks > 2 && form == model::GroupForm::kSymmetric;
      if (where.ranks > 1 && !few)
        out.push_back({.where = where, .form = form});
    }
  }
  return out;
}

// The embedded model has columns for four ranks, heads for one, two or four.
inline std::vector<GroupSetting> UnevenSettings() {
  constexpr auto kSymmetric = model::GroupForm::kSymmetric;
  constexpr auto kLone = model::GroupForm::kLone;
  return {{{.ranks = 2}, kSymmetric, {3, 1}},
          {{.ranks = 2}, kSymmetric, {1, 3}},
          {{.ranks = 2}, kLone, {3, 1}},
          {{.ranks = 2}, kLone, {1, 3}},
          {{.ranks = 3}, kLone, {1, 2, 1}},
          {{.gpus = true, .ranks = 2}, kSymmetric, {1, 3}},
          {{.gpus = true, .ranks = 2}, kLone, {3, 1}}};
}

// The ranks of a group, whose names are "device 0" and so on; none where it
// failed.
inline std::vector<model::GroupDecoder::Member> MembersOf(
    const checkpoint::Checkpoint& model, const GroupSetting& setting) {
  std::vector<model::GroupDecoder::Member> out;
  const auto dense = model::LoadDenseWeights(model);
  EXPECT_TRUE(dense.ok()) << dense.status();
  for (int32_t rank = 0; rank < setting.where.ranks; ++rank) {
    auto queue = kernels::DeviceQueue::Create(setting.where.device(rank));
    EXPECT_TRUE(queue.ok()) << queue.status();
    auto weights = model::LoadDeviceWeights(
        model,
        queue->get(),
        {.rank = {rank, setting.where.ranks, setting.form, setting.shares},
         .dense = &*dense});
    EXPECT_TRUE(weights.ok()) << weights.status();
    if (!weights.ok()) return {};
    out.push_back({*std::move(queue),
                   *std::move(weights),
                   "device " + std::to_string(rank)});
  }
  return out;
}

// Of those on twins, each number of ranks and each form once: for what takes
// long.
inline std::vector<GroupSetting> FewGroupSettings() {
  std::vector<GroupSetting> out;
  for (const GroupSetting& setting : GroupSettings()) {
    const bool lone = setting.form == model::GroupForm::kLone;
    if (setting.where.gpus || lone == (setting.where.ranks == 2)) {
      out.push_back(setting);
    }
  }
  return out;
}

// Sequences through a model on a group.
struct GroupRunner {
  GroupRunner(const checkpoint::Checkpoint& model,
              const GroupSetting& setting,
              bool exact = true,
              absl::Duration deadline = absl::Seconds(60)) {
    auto members = MembersOf(model, setting);
    for (const auto& member : members) {
      columns.push_back(member.weights.cut.columns.size());
    }
    constexpr int32_t kRows = 2048;
    auto made = model::GroupDecoder::Create(
        std::move(members),
        {.each = {.sizes = ModelRunner::Sizes(),
                  .rows_max = kRows,
                  .sequences_max = ModelRunner::kSequences,
                  .exact = exact,
                  .logit_bytes = setting.logit_bytes},
         .form = setting.form,
         .exchange = setting.where.exchange,
         .deadline = deadline,
         .micro_batches = {.count = setting.micro_batches}});
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return;
    decoder = made->get();
    runner = std::make_unique<ModelRunner>(*std::move(made),
                                           model.config().vocab_size);
  }

  model::GroupDecoder* decoder = nullptr;  // the runner's
  std::vector<int64_t> columns;            // of each expert, by rank
  std::unique_ptr<ModelRunner> runner;
};

}  // namespace conclave::testing
