# conclave_library(NAME text HDRS a.h SRCS a.cc DEPS conclave::common)
#
# One library per folder, alias conclave::NAME. Headers are a FILE_SET, so that
# `all_verify_interface_header_sets` compiles each alone. A link test proves
# that DEPS is complete: the whole archive must link with nothing else.
function(conclave_library)
  cmake_parse_arguments(A "" "NAME" "HDRS;SRCS;DEPS" ${ARGN})
  set(target conclave_${A_NAME})
  if(NOT A_SRCS)  # headers only, so far
    set(A_SRCS ${PROJECT_SOURCE_DIR}/deploy/cmake/empty.cc)
  endif()
  add_library(${target} STATIC)
  add_library(conclave::${A_NAME} ALIAS ${target})
  target_sources(${target}
    PRIVATE ${A_SRCS}
    PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${A_HDRS})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${A_DEPS})
  set_target_properties(${target} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  if(CONCLAVE_BUILD_TESTS)
    add_executable(${target}_link_test
      ${PROJECT_SOURCE_DIR}/tests/tidy/empty_main.cc)
    target_link_libraries(${target}_link_test PRIVATE
      "$<LINK_LIBRARY:WHOLE_ARCHIVE,${target}>")
    add_test(NAME link.${A_NAME} COMMAND ${target}_link_test)
    set_tests_properties(link.${A_NAME} PROPERTIES LABELS tidy)
  endif()
endfunction()

# conclave_program(NAME conclave-worker SRCS main.cc DEPS conclave::worker)
function(conclave_program)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${A_NAME} ${A_SRCS})
  target_compile_features(${A_NAME} PRIVATE cxx_std_20)
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS})
  # Side by side, as they are installed.
  set_target_properties(${A_NAME} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  if(CONCLAVE_INSTALL)
    install(TARGETS ${A_NAME} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endfunction()

# What tests/run.sh builds of a preset that does not build everything.
add_custom_target(fuzzers)
add_custom_target(concurrency_tests)
add_custom_target(cuda_targets)

# conclave_test(NAME text_test SRCS a_test.cc DEPS conclave::text
#               LABELS unit concurrency [FIXTURE formats])
#
# One executable per folder (linking is slow), one ctest case per test. Tests
# run in the source folder, so that paths such as tests/golden are relative.
function(conclave_test)
  cmake_parse_arguments(A "" "NAME;FIXTURE" "SRCS;DEPS;LABELS" ${ARGN})
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE
    ${A_DEPS} conclave::testing GTest::gmock GTest::gtest_main)
  if("concurrency" IN_LIST A_LABELS)
    add_dependencies(concurrency_tests ${A_NAME})
  endif()
  # One label "unit.concurrency": CMake 3.25 cannot pass a list here, and
  # ctest -L takes an expression.
  list(JOIN A_LABELS "." labels)
  gtest_discover_tests(${A_NAME}
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
    DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS "${labels}" TIMEOUT 600
      FIXTURES_REQUIRED "${A_FIXTURE}")
endfunction()

# conclave_fuzzer(NAME fuzz_wire SRCS wire_fuzz.cc DEPS conclave::transport)
# Built only with CONCLAVE_BUILD_FUZZERS; runs CONCLAVE_FUZZ_SECONDS (30).
function(conclave_fuzzer)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  if(NOT CONCLAVE_BUILD_FUZZERS)
    return()
  endif()
  set(corpus ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${A_NAME})
  set(scratch ${PROJECT_BINARY_DIR}/fuzz/${A_NAME})
  file(MAKE_DIRECTORY ${scratch})
  add_executable(${A_NAME} ${A_SRCS})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS} -fsanitize=fuzzer)
  add_dependencies(fuzzers ${A_NAME})
  set(CONCLAVE_FUZZ_SECONDS 30 CACHE STRING "Seconds that each fuzzer runs")
  add_test(NAME fuzz.${A_NAME}
    COMMAND ${A_NAME} -max_total_time=${CONCLAVE_FUZZ_SECONDS}
      -rss_limit_mb=2048 -timeout=10 -print_final_stats=1
      ${scratch} ${corpus})
  set_tests_properties(fuzz.${A_NAME} PROPERTIES LABELS fuzz TIMEOUT 600)
endfunction()
