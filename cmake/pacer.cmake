# netssmd.output._pacer: one file, no special instruction set. nanobind was found by cpu_backend.cmake.

if(NOT nanobind_FOUND)
  return()
endif()
nanobind_add_module(_pacer NB_STATIC netssmd/output/native/pacer.cpp)
target_compile_options(_pacer PRIVATE -O2 -Wall -Wextra)
target_link_libraries(_pacer PRIVATE Threads::Threads)
install(TARGETS _pacer LIBRARY DESTINATION netssmd/output)
list(APPEND NETSSMD_COMPILED_MODULES netssmd.output._pacer)
