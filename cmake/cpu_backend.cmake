# netssmd.model._cpu: every .cpp in netssmd/model/cpu. Run-time dispatch wants each kernel file compiled for its own
# instruction set, so a file's name ends with the set it needs and the table below holds that set's flags. A file whose
# set this compiler or processor family cannot build is left out, and NETSSMD_HAVE_<SET> tells the others.

file(GLOB cpu_sources CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/netssmd/model/cpu/*.cpp")
if(NOT cpu_sources)
  message(STATUS "netssmd: no sources in netssmd/model/cpu, the cpu backend is not built")
  return()
endif()
if(NOT cxx_std_20 IN_LIST CMAKE_CXX_COMPILE_FEATURES)
  message(WARNING "netssmd: this compiler knows no C++20, the cpu backend is not built: the torch backend serves")
  return()
endif()

include(CheckCXXCompilerFlag)
find_package(nanobind CONFIG QUIET)
if(NOT nanobind_FOUND)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
                  OUTPUT_STRIP_TRAILING_WHITESPACE OUTPUT_VARIABLE nanobind_ROOT)
  find_package(nanobind CONFIG REQUIRED)
endif()

# file name suffix -> flags (x86_64 only); every other file is compiled for the processor family's common ground
set(suffixes avx2 avx512 amx)
set(flags_avx2 -mavx2 -mfma)
set(flags_avx512 ${flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni)
set(flags_amx ${flags_avx512} -mavx512bf16 -mamx-tile -mamx-bf16 -mamx-int8)

set(cpu_definitions "")
foreach(source IN LISTS cpu_sources)
  get_filename_component(stem "${source}" NAME_WE)
  foreach(suffix IN LISTS suffixes)
    if(stem MATCHES "_${suffix}$")
      string(TOUPPER "${suffix}" upper)
      set(usable FALSE)
      if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
        list(JOIN flags_${suffix} " " joined)
        set(CMAKE_REQUIRED_FLAGS "")
        check_cxx_compiler_flag("${joined}" NETSSMD_FLAGS_${upper})
        set(usable ${NETSSMD_FLAGS_${upper}})
      endif()
      if(usable)
        set_source_files_properties("${source}" PROPERTIES COMPILE_OPTIONS "${flags_${suffix}}")
        list(APPEND cpu_definitions NETSSMD_HAVE_${upper}=1)
      else()
        list(REMOVE_ITEM cpu_sources "${source}")
      endif()
      break()
    endif()
  endforeach()
endforeach()

nanobind_add_module(_cpu NB_STATIC NOMINSIZE ${cpu_sources})
target_compile_definitions(_cpu PRIVATE ${cpu_definitions})
# Rounding must not hang on which expressions the compiler happens to fuse: every fused multiply-add is written as one.
target_compile_options(_cpu PRIVATE -O3 -Wall -Wextra -fno-math-errno -fno-trapping-math -fno-strict-aliasing -ffp-contract=off
                       $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)  # GCC 12's own intrinsics headers
target_link_libraries(_cpu PRIVATE Threads::Threads)
install(TARGETS _cpu LIBRARY DESTINATION netssmd/model)
list(APPEND NETSSMD_COMPILED_MODULES netssmd.model._cpu)
