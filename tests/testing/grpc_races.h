// SPDX-License-Identifier: Apache-2.0
#pragma once

// For one file of each program that the thread sanitizer watches over gRPC: the
// queue's own hand-over of an operation from thread to thread is not visible in
// a gRPC that was built without the sanitizer.
extern "C" const char* __tsan_default_suppressions() {
  return "race:grpc::Server::SyncRequest\nrace:grpc::internal::CallOpSet\n";
}
