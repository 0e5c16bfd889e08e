// SPDX-License-Identifier: Apache-2.0
// The body of every link test: the libraries alone must link.
int main() { return 0; }
