// SPDX-License-Identifier: Apache-2.0
#pragma once

// Certificates for tests, made by the openssl program. Link conclave::proto.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "absl/strings/str_cat.h"
#include "conclave/v1/config.pb.h"
#include "gtest/gtest.h"

namespace conclave::testing {

// Two authorities, "ca" and "stranger", with a certificate each that is good
// for 127.0.0.1.
class TlsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Run("command -v openssl") != 0) GTEST_SKIP() << "openssl is missing";
    dir_ = std::filesystem::path(::testing::TempDir()) /
           absl::StrCat("conclave_tls_", getpid());
    std::filesystem::create_directories(dir_);
    MakeAuthority("ca");
    MakeAuthority("stranger");
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  static int Run(const std::string& command) {
    return std::system((command + " >/dev/null 2>&1").c_str());
  }
  // A certificate for 127.0.0.1, signed by its own authority.
  void MakeAuthority(const std::string& name) {
    const std::string p = (dir_ / name).string();
    const std::string key =
        "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    ASSERT_EQ(Run(absl::StrCat("openssl req -x509 ",
                               key,
                               " -keyout ",
                               p,
                               ".ca.key -out ",
                               p,
                               ".ca.pem -subj /CN=",
                               name,
                               " -days 2")),
              0);
    ASSERT_EQ(Run(absl::StrCat("openssl req ",
                               key,
                               " -keyout ",
                               p,
                               ".key -out ",
                               p,
                               ".csr -subj /CN=node")),
              0);
    ASSERT_EQ(Run(absl::StrCat("echo subjectAltName=IP:127.0.0.1 > ",
                               p,
                               ".ext; openssl x509 -req -in ",
                               p,
                               ".csr -CA ",
                               p,
                               ".ca.pem -CAkey ",
                               p,
                               ".ca.key -CAcreateserial -days 2 -extfile ",
                               p,
                               ".ext -out ",
                               p,
                               ".pem")),
              0);
  }
  v1::Tls Tls(const std::string& ca, const std::string& who) const {
    v1::Tls tls;
    tls.set_ca((dir_ / (ca + ".ca.pem")).string());
    tls.set_cert((dir_ / (who + ".pem")).string());
    tls.set_key((dir_ / (who + ".key")).string());
    return tls;
  }

  std::filesystem::path dir_;
};

}  // namespace conclave::testing
