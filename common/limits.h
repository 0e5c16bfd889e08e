// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// Every bound of the system: name, unit, reason. A bound is checked where the
// thing comes in; crossing it is ResourceExhausted or InvalidArgument.
namespace conclave::limits {

// Positions per KV block. 64 = the grid of chunked GDN, so that a prefill
// piece that ends on the grid also ends a block.
inline constexpr int32_t kKvBlockTokens = 64;
// Rows of one cell of chunked GDN (the reference's chunk size).
inline constexpr int32_t kGdnCellRows = 64;
// Rows that one step may carry: prefill budget plus decode rows.
inline constexpr int32_t kStepRowsMax = 8192;
// Rows of a step over a link: what fills a recorded step up is at most half of
// its sequences.
inline constexpr int32_t kLinkRowsMax = 8704;
inline constexpr int32_t kStepTokensDefault = 512;
// A GPU reads all experts for a prompt either way: the more rows, the better.
inline constexpr int32_t kStepTokensOnGpu = 2048;
inline constexpr int32_t kSequencesDefault = 16;
inline constexpr int32_t kSequencesMax = 1024;
inline constexpr int32_t kQueueDefault = 64;
// One exchange frame. 8192 rows x 4096 x 4 bytes is 128 MiB, plus indices.
inline constexpr size_t kFrameBytesMax = size_t{192} << 20;
// Frames above this go through the bulk stream, so that a small one never
// waits behind a large one.
inline constexpr size_t kBulkFrameBytes = size_t{256} << 10;
inline constexpr int32_t kShardsMax = 4096;
// Threads that read weights, slices that a load has under way: enough to hide
// a fast disk's and a link's latency.
inline constexpr int32_t kReaders = 8;
inline constexpr int32_t kWorkersMax = 256;
// GPUs of one host that compute a model together: an NVLink host has eight.
inline constexpr int32_t kRanksMax = 8;
// A rank's share of the columns of experts, relative to the others'.
inline constexpr int32_t kRankShareMax = 1000;
// Of a step: one is computed here while the experts of the other compute.
inline constexpr int32_t kMicroBatchesMax = 2;
inline constexpr int32_t kExpertsMax = 4096;
inline constexpr int32_t kLayersMax = 1024;
inline constexpr int32_t kTopKMax = 64;
inline constexpr int32_t kHiddenMax = 65536;
inline constexpr int32_t kVocabMax = 1 << 21;
// A safetensors header; the 397B's has about 10 MB.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = uint64_t{100} << 20;
inline constexpr size_t kConfigFileBytesMax = size_t{4} << 20;
inline constexpr size_t kTokenizerFileBytesMax = size_t{256} << 20;
inline constexpr int64_t kBodyBytesDefault = int64_t{8} << 20;
inline constexpr int32_t kJsonDepthMax = 64;
inline constexpr int32_t kStopStringsMax = 16;
inline constexpr int32_t kStopBytesMax = 1024;
inline constexpr int32_t kLogitBiasMax = 1024;
inline constexpr int32_t kTopLogprobsMax = 20;
inline constexpr int32_t kToolsMax = 256;
inline constexpr int32_t kMessagesMax = 8192;
inline constexpr int32_t kConnectionsMax = 1024;

static_assert(kFrameBytesMax > kBulkFrameBytes);
static_assert(kKvBlockTokens % kGdnCellRows == 0 ||
              kGdnCellRows % kKvBlockTokens == 0);
static_assert(kStepTokensDefault >= kGdnCellRows);
static_assert(kStepRowsMax >= kStepTokensOnGpu + kSequencesMax);
static_assert(kLinkRowsMax == kStepRowsMax + kSequencesMax / 2);

}  // namespace conclave::limits
