# SPDX-License-Identifier: Apache-2.0
# absl::inlined_vector: TREEOPS_ABSEIL_SOURCE_DIR (offline) > system package > pinned tarball.
set(TREEOPS_ABSEIL_SOURCE_DIR "" CACHE PATH "Unpacked abseil-cpp source tree (offline builds)")
set(TREEOPS_ABSEIL_URL
  "https://github.com/abseil/abseil-cpp/releases/download/20250814.1/abseil-cpp-20250814.1.tar.gz"
  CACHE STRING "abseil-cpp release tarball")
set(TREEOPS_ABSEIL_SHA256 "1692f77d1739bacf3f94337188b78583cf09bab7e420d2dc6c5605a4f86785a1"
  CACHE STRING "its SHA-256")
if(NOT TREEOPS_ABSEIL_SOURCE_DIR AND DEFINED ENV{TREEOPS_ABSEIL_SOURCE_DIR})
  set(TREEOPS_ABSEIL_SOURCE_DIR "$ENV{TREEOPS_ABSEIL_SOURCE_DIR}")
endif()
if(TREEOPS_ABSEIL_SOURCE_DIR)
  if(NOT EXISTS "${TREEOPS_ABSEIL_SOURCE_DIR}/absl/container/inlined_vector.h")
    message(FATAL_ERROR
      "treeops: expected an unpacked abseil-cpp source tree, got TREEOPS_ABSEIL_SOURCE_DIR="
      "${TREEOPS_ABSEIL_SOURCE_DIR}; it has no absl/container/inlined_vector.h")
  endif()
  set(FETCHCONTENT_SOURCE_DIR_ABSL "${TREEOPS_ABSEIL_SOURCE_DIR}")
elseif(TREEOPS_USE_SYSTEM_ABSEIL)
  find_package(absl CONFIG QUIET)
endif()
if(TARGET absl::inlined_vector)
  message(STATUS "treeops: system abseil ${absl_VERSION} (${absl_DIR})")
else()
  if(TREEOPS_ABSEIL_SOURCE_DIR)
    message(STATUS "treeops: building abseil from ${TREEOPS_ABSEIL_SOURCE_DIR}")
  else()
    message(STATUS
      "treeops: abseil is not installed; fetching ${TREEOPS_ABSEIL_URL}. Should that fail, there are three "
      "ways out: install the system package (apt install libabsl-dev), point TREEOPS_ABSEIL_SOURCE_DIR at an "
      "unpacked abseil-cpp, or give TREEOPS_ABSEIL_URL and TREEOPS_ABSEIL_SHA256 of a reachable tarball")
  endif()
  # a directory of its own: EXCLUDE_FROM_ALL inside FetchContent_Declare needs CMake 3.28
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}/abseil" "${CMAKE_CURRENT_BINARY_DIR}/abseil" EXCLUDE_FROM_ALL)
endif()
