// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <string>

#include "common/check.h"
#include "common/delivery/deliver_frame.h"
#include "worker/load_request.h"

// What a worker takes from the network about slices: anything is parsed or
// refused, and what is accepted has sizes that add up.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  const std::string input(reinterpret_cast<const char*>(data), size);
  const auto frame = delivery::ParseFrame(input);
  if (frame.ok()) CONCLAVE_CHECK(frame->body.size() < size);
  v1::AssignRequest request;
  if (!request.ParseFromString(input)) return 0;
  const auto load = worker::ParseAssign(request);
  if (!load.ok()) return 0;
  for (const worker::WantedShard& shard : load->shards) {
    CONCLAVE_CHECK(shard.slices.size() == shard.shard.slices.size());
    uint64_t bytes = 0;
    for (const worker::WantedSlice& slice : shard.slices) {
      CONCLAVE_CHECK(slice.layout.bytes() > 0);
      bytes += slice.layout.bytes();
    }
    CONCLAVE_CHECK(bytes == shard.bytes);
  }
  return 0;
}
