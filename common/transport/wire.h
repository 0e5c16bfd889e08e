// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/dtype.h"
#include "common/ids.h"

namespace conclave::transport {

// Encoding of exchange frames, little-endian, docs/contracts/wire.md. The only
// file that knows the bytes. Decoders check every bound before use and never
// read outside the frame; what they return points into it.

// A frame belongs to one layer of one micro-batch of one life of the
// coordinator; a reply repeats the tag of its request, and the receiver drops
// all others.
struct FrameTag {
  uint64_t generation = 0;
  uint64_t step = 0;  // numbers the micro-batches of all steps
  LayerId layer{};
  friend bool operator==(const FrameTag&, const FrameTag&) = default;
};

// Work of one shard in a request: entries sorted by (slice, row).
struct ShardEntries {
  ShardId shard{};
  std::span<const int32_t> slice;  // local index of the expert's slice
  std::span<const int32_t> row;    // into ExpertRequest.rows
  std::span<const float> weight;
};

struct ExpertRequest {
  FrameTag tag;
  int32_t row_count = 0;
  int32_t hidden = 0;
  DType dtype = DType::kF32;         // of x on the wire: kF32 or kBF16
  DType reply_dtype = DType::kF32;   // asked for the reply
  std::vector<ShardEntries> shards;  // ascending shard id
  std::span<const std::byte> x;      // [row_count, hidden], each row once
};

// Partial sums of one shard: one row per distinct row of its entries.
struct ShardPartial {
  ShardId shard{};
  std::span<const int32_t> row;    // ascending, into the request's rows
  std::span<const std::byte> sum;  // [row.size(), hidden]
};

struct ExpertReply {
  FrameTag tag;
  int32_t hidden = 0;
  DType dtype = DType::kF32;
  std::vector<ShardPartial> shards;  // ascending shard id
};

// A worker that cannot answer says why.
struct ErrorReply {
  FrameTag tag;
  absl::StatusCode code = absl::StatusCode::kUnknown;
  std::string message;
};

// Asks a worker for so many bytes back, whatever it holds: how links are
// measured. The answer is a probe that asks for nothing.
struct ProbeFrame {
  FrameTag tag;
  uint64_t payload_bytes = 0;  // zeros
  uint64_t reply_bytes = 0;    // of the payload of the answer
};
// The largest payload, either way.
uint64_t ProbeBytesMax();

// A step whose rows travel over a link: its layers are queued with no further
// word. The answer repeats it, or is an error.
struct StepFrame {
  FrameTag tag;         // layer 0
  uint64_t link = 0;    // its number
  int32_t rows = 0;     // of every layer
  bool record = false;  // such steps come again
  friend bool operator==(const StepFrame&, const StepFrame&) = default;
};

Buffer EncodeRequest(const ExpertRequest& request);
Buffer EncodeReply(const ExpertReply& reply);
Buffer EncodeError(const ErrorReply& error);
Buffer EncodeProbe(const ProbeFrame& probe);
Buffer EncodeStep(const StepFrame& step);

enum class FrameKind : uint8_t {
  kRequest = 1,
  kReply = 2,
  kError = 3,
  kProbe = 4,
  kStep = 5
};
// InvalidArgument: too short, wrong magic, other protocol version.
absl::StatusOr<FrameKind> PeekKind(std::span<const std::byte> frame);

// The views in the result live as long as `frame`, which must be aligned to 8.
absl::StatusOr<ExpertRequest> DecodeRequest(std::span<const std::byte> frame);
absl::StatusOr<ExpertReply> DecodeReply(std::span<const std::byte> frame);
absl::StatusOr<ErrorReply> DecodeError(std::span<const std::byte> frame);
absl::StatusOr<ProbeFrame> DecodeProbe(std::span<const std::byte> frame);
absl::StatusOr<StepFrame> DecodeStep(std::span<const std::byte> frame);

}  // namespace conclave::transport
