// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/worker.h"

namespace conclave::testing {

// A worker of one thread in this process, on loopback; port 0: any free one.
// Null, with a failure, if it does not start.
inline std::unique_ptr<worker::Worker> StartWorker(const std::string& name,
                                                   int port = 0,
                                                   const v1::Tls& tls = {},
                                                   std::string model = "") {
  auto worker =
      worker::Worker::Start({.name = name,
                             .address = absl::StrCat("127.0.0.1:", port),
                             .model = std::move(model),
                             .hint = "",
                             .threads = 1,
                             .spin_us = 0,
                             .tls = tls,
                             .progress = nullptr,
                             .cache = "",
                             .cache_bytes = 0});
  EXPECT_TRUE(worker.ok()) << worker.status();
  return worker.ok() ? *std::move(worker) : nullptr;
}

}  // namespace conclave::testing
