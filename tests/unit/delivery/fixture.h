// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"
#include "tests/unit/delivery/node.h"

namespace conclave::testing {

// A random checkpoint of 32 slices of 12 KiB on the coordinator's side.
class DeliveryTest : public ::testing::Test {
 protected:
  static constexpr uint64_t kSliceBytes = uint64_t{3} * 32 * 64 * 2;
  static constexpr uint64_t kAllBytes = 32 * kSliceBytes;

  void SetUp() override {
    WriteCheckpoint(model_, {});
    Reopen();
  }
  // The coordinator starts anew.
  void Reopen() {
    supply_ = nullptr;
    checkpoint_ = *checkpoint::Checkpoint::Open(model_.string());
    supply_ = std::make_unique<delivery::Supply>(
        checkpoint_.get(),
        delivery::Supply::Options{.cache = Folder("coordinator"),
                                  .clock = RealClock()});
  }
  std::string Folder(const std::string& name) const {
    return (temp_.path() / name).string();
  }

  v1::AssignRequest Request(int32_t begin = 0, int32_t end = 8) const {
    v1::AssignRequest request;
    request.set_generation(7);
    AddShard(*checkpoint_, 0, begin, end, &request);
    return request;
  }
  static void AddPeer(const std::string& name,
                      const std::string& address,
                      v1::AssignRequest* request) {
    v1::Peer* peer = request->add_peers();
    peer->set_name(name);
    peer->set_address(address);
  }
  // Loads and compares every byte; the progress at the end.
  v1::LoadProgress MustLoad(Node& node, const v1::AssignRequest& request) {
    v1::LoadProgress last;
    const absl::Status status = node.Load(supply_.get(), request, &last);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(last.bytes_done(), last.bytes_total());
    if (status.ok()) ExpectHolds(node.store, *checkpoint_);
    return last;
  }
  std::string Refusal(Node& node, const v1::AssignRequest& request) {
    v1::LoadProgress last;
    const absl::Status status = node.Load(supply_.get(), request, &last);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(node.store.current(), nullptr);
    return status.ToString();
  }

  static std::vector<std::filesystem::path> CacheFiles(
      const std::string& folder) {
    std::vector<std::filesystem::path> out;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) out.push_back(entry.path());
    }
    return out;
  }
  static void FlipByte(const std::filesystem::path& path, int64_t at) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(at);
    const char byte = static_cast<char>(file.get());
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 1));
    EXPECT_TRUE(file.good());
  }

  TempFolder temp_;
  const std::filesystem::path model_ = temp_.path() / "model";
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::unique_ptr<delivery::Supply> supply_;
};

}  // namespace conclave::testing
