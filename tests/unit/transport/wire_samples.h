// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "common/transport/wire.h"
#include "tests/testing/seeded.h"

namespace conclave::testing {

// A random request with the memory that it points to: uneven shards, some of
// them empty, rows without entries.
struct RequestSample {
  transport::ExpertRequest request;
  std::deque<std::vector<int32_t>> ints;
  std::deque<std::vector<float>> floats;
  std::vector<std::byte> x;
};

inline void FillSample(uint32_t seed, RequestSample* sample) {
  Seeded seeded(seed);
  transport::ExpertRequest& request = sample->request;
  request.tag = {.generation = 7000 + seed,
                 .step = seeded.Next(),
                 .layer = static_cast<LayerId>(seeded.Int(60))};
  request.row_count = seeded.Int(20);
  request.hidden = 1 + seeded.Int(9);
  request.dtype = seeded.Int(2) == 0 ? DType::kF32 : DType::kBF16;
  request.reply_dtype = seeded.Int(2) == 0 ? DType::kF32 : DType::kBF16;
  int32_t shard_id = -1;
  for (int32_t i = seeded.Int(5); i > 0; --i) {
    shard_id += 1 + seeded.Int(3);
    std::vector<int32_t> slices, rows;
    std::vector<float> weights;
    for (int32_t slice = 0; slice < seeded.Int(12); ++slice) {
      for (int32_t row = 0; row < request.row_count; ++row) {
        if (seeded.Int(3) != 0) continue;
        slices.push_back(slice);
        rows.push_back(row);
        weights.push_back(static_cast<float>(seeded.Real()));
      }
    }
    transport::ShardEntries entries;
    entries.shard = static_cast<ShardId>(shard_id);
    entries.slice = sample->ints.emplace_back(std::move(slices));
    entries.row = sample->ints.emplace_back(std::move(rows));
    entries.weight = sample->floats.emplace_back(std::move(weights));
    request.shards.push_back(entries);
  }
  sample->x.resize(static_cast<size_t>(request.row_count) *
                   static_cast<size_t>(request.hidden) * SizeOf(request.dtype));
  for (std::byte& b : sample->x) b = static_cast<std::byte>(seeded.Next() >> 9);
  request.x = sample->x;
}

struct ReplySample {
  transport::ExpertReply reply;
  std::deque<std::vector<int32_t>> ints;
  std::deque<std::vector<std::byte>> sums;
};

inline void FillSample(uint32_t seed, ReplySample* sample) {
  Seeded seeded(seed);
  transport::ExpertReply& reply = sample->reply;
  reply.tag = {.generation = seed, .step = seeded.Next(), .layer = LayerId{3}};
  reply.hidden = 1 + seeded.Int(9);
  reply.dtype = seeded.Int(2) == 0 ? DType::kF32 : DType::kBF16;
  int32_t shard_id = -1;
  for (int32_t i = seeded.Int(5); i > 0; --i) {
    shard_id += 1 + seeded.Int(3);
    std::vector<int32_t> rows;
    for (int32_t row = 0; row < seeded.Int(30); ++row) {
      if (seeded.Int(2) == 0) rows.push_back(row);
    }
    transport::ShardPartial partial;
    partial.shard = static_cast<ShardId>(shard_id);
    partial.row = sample->ints.emplace_back(std::move(rows));
    std::vector<std::byte> sum(partial.row.size() *
                               static_cast<size_t>(reply.hidden) *
                               SizeOf(reply.dtype));
    for (std::byte& b : sum) b = static_cast<std::byte>(seeded.Next() >> 9);
    partial.sum = sample->sums.emplace_back(std::move(sum));
    reply.shards.push_back(partial);
  }
}

}  // namespace conclave::testing
