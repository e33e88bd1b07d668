# Finds ONNX Runtime and defines the target onnxruntime::onnxruntime. In this order:
#   -DONNXRUNTIME_ROOT=DIR       an unpacked release: DIR/include, DIR/lib
#   -DONNXRUNTIME_PYTHON=PYTHON  the library in the wheel that this interpreter has (onnxruntime or onnxruntime-gpu)
#   a package configuration      Debian's libonnxruntime-dev, a release on CMAKE_PREFIX_PATH, onnxruntime_DIR
#   the wheel of python3         on the PATH
# A wheel has no headers: -DONNXRUNTIME_INCLUDE_DIR=DIR names them, else those of the system are taken. Headers older
# than the library are fine, newer ones are not.
# Variables: ONNXRUNTIME_FROM, a text; ONNXRUNTIME_CONFIG_DIR, if that is how it was found; ONNXRUNTIME_LINKS, the folder
# with a wheel's library under the usual names; ONNXRUNTIME_HEADERS.
# Linux is tested. The names on Windows and macOS are those of ONNX Runtime's releases and wheels; they have not been run.

set(_looked_for "")
set(ONNXRUNTIME_FROM "")
set(ONNXRUNTIME_CONFIG_DIR "")
set(ONNXRUNTIME_LINKS "")
set(ONNXRUNTIME_HEADERS "")
set(_library_name "${CMAKE_SHARED_LIBRARY_PREFIX}onnxruntime${CMAKE_SHARED_LIBRARY_SUFFIX}")

# What follows a library's stem: `.so.1.31.1`, `.1.31.1.dylib`, `.dll`.
set(_wheel_pattern "libonnxruntime.so.*")
if(APPLE)
  set(_wheel_pattern "libonnxruntime.*.dylib")
elseif(WIN32)
  set(_wheel_pattern "onnxruntime.dll")
endif()

macro(_onnxruntime_library library import include from)
  if(NOT TARGET onnxruntime::onnxruntime)
    add_library(onnxruntime::onnxruntime SHARED IMPORTED GLOBAL)
    set_target_properties(onnxruntime::onnxruntime PROPERTIES
      IMPORTED_LOCATION "${library}" INTERFACE_INCLUDE_DIRECTORIES "${include}")
    if(WIN32)
      set_target_properties(onnxruntime::onnxruntime PROPERTIES IMPORTED_IMPLIB "${import}")
    endif()
  endif()
  set(ONNXRUNTIME_HEADERS "${include}")
  set(ONNXRUNTIME_FROM "${from}")
endmacro()

# Gives the library in a wheel the names that linkers and loaders look for: links in a folder, beside links to its
# providers, which it looks for there.
function(_onnxruntime_links libraries folder)
  file(REMOVE_RECURSE "${folder}")
  file(MAKE_DIRECTORY "${folder}")
  list(GET libraries 0 library)
  get_filename_component(parts "${library}" DIRECTORY)
  file(GLOB parts "${parts}/libonnxruntime*${CMAKE_SHARED_LIBRARY_SUFFIX}*")
  foreach(part IN LISTS parts)
    get_filename_component(name "${part}" NAME)
    file(CREATE_LINK "${part}" "${folder}/${name}" SYMBOLIC)
  endforeach()
  set(soname libonnxruntime.so.1)
  if(APPLE)
    set(soname libonnxruntime.1.dylib)
  endif()
  file(CREATE_LINK "${library}" "${folder}/${soname}" SYMBOLIC)
  file(CREATE_LINK "${soname}" "${folder}/${_library_name}" SYMBOLIC)
endfunction()

macro(_onnxruntime_wheel python)
  execute_process(COMMAND "${python}" -c "import importlib.util as u; print(u.find_spec('onnxruntime').submodule_search_locations[0])"
    OUTPUT_VARIABLE _package ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  file(GLOB _libraries "${_package}/capi/${_wheel_pattern}")
  find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_cxx_api.h PATH_SUFFIXES onnxruntime onnxruntime/core/session)
  if(NOT _package OR NOT _libraries)
    string(APPEND _looked_for "\n  no package onnxruntime with capi/${_wheel_pattern} in ${python}")
  elseif(WIN32 AND NOT EXISTS "${_package}/capi/onnxruntime.lib")
    string(APPEND _looked_for "\n  no capi/onnxruntime.lib to link with in the wheel of ${python}: unpack a release")
  elseif(NOT ONNXRUNTIME_INCLUDE_DIR)
    string(APPEND _looked_for "\n  no onnxruntime_cxx_api.h for the wheel of ${python}: set ONNXRUNTIME_INCLUDE_DIR")
  elseif(WIN32)
    _onnxruntime_library("${_package}/capi/onnxruntime.dll" "${_package}/capi/onnxruntime.lib"
      "${ONNXRUNTIME_INCLUDE_DIR}" "the wheel in ${_package}")
  else()
    set(ONNXRUNTIME_LINKS "${CMAKE_CURRENT_BINARY_DIR}/onnxruntime")
    _onnxruntime_links("${_libraries}" "${ONNXRUNTIME_LINKS}")
    _onnxruntime_library("${ONNXRUNTIME_LINKS}/${_library_name}" "" "${ONNXRUNTIME_INCLUDE_DIR}" "the wheel in ${_package}")
  endif()
endmacro()

macro(_onnxruntime_release root)
  find_path(_root_include onnxruntime_cxx_api.h PATHS "${root}" NO_DEFAULT_PATH NO_CACHE
    PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session)
  find_library(_root_link onnxruntime PATHS "${root}" NO_DEFAULT_PATH NO_CACHE PATH_SUFFIXES lib lib64)
  set(_root_library "${_root_link}")
  if(WIN32) # what is linked is onnxruntime.lib, what runs is the DLL beside it
    find_file(_root_library onnxruntime.dll PATHS "${root}" NO_DEFAULT_PATH NO_CACHE PATH_SUFFIXES lib bin)
  endif()
  if(_root_include AND _root_link AND _root_library)
    _onnxruntime_library("${_root_library}" "${_root_link}" "${_root_include}" "ONNXRUNTIME_ROOT=${root}")
  else()
    string(APPEND _looked_for "\n  no include/onnxruntime_cxx_api.h with lib/${_library_name} in ONNXRUNTIME_ROOT=${root}")
  endif()
endmacro()

if(ONNXRUNTIME_ROOT)
  get_filename_component(_root "${ONNXRUNTIME_ROOT}" ABSOLUTE)
  _onnxruntime_release("${_root}")
elseif(ONNXRUNTIME_PYTHON)
  _onnxruntime_wheel("${ONNXRUNTIME_PYTHON}")
else()
  find_package(onnxruntime CONFIG QUIET)
  if(TARGET onnxruntime::onnxruntime)
    set(ONNXRUNTIME_FROM "${onnxruntime_CONFIG}")
    get_filename_component(ONNXRUNTIME_CONFIG_DIR "${onnxruntime_CONFIG}" DIRECTORY)
  else()
    string(APPEND _looked_for "\n  no onnxruntimeConfig.cmake on CMAKE_PREFIX_PATH or in the system (onnxruntime_DIR)")
    find_program(_python3 python3 NO_CACHE)
    if(_python3)
      _onnxruntime_wheel("${_python3}")
    else()
      string(APPEND _looked_for "\n  no python3 on the PATH, to look for a wheel")
    endif()
  endif()
endif()

if(TARGET onnxruntime::onnxruntime)
  set(onnxruntime_FOUND TRUE)
else()
  set(onnxruntime_FOUND FALSE)
  if(onnxruntime_FIND_REQUIRED)
    message(FATAL_ERROR "ONNX Runtime was not found:${_looked_for}\n"
      "Set one of: -DONNXRUNTIME_ROOT=DIR (an unpacked release), -Donnxruntime_DIR=DIR (of onnxruntimeConfig.cmake), "
      "or -DONNXRUNTIME_PYTHON=PYTHON with -DONNXRUNTIME_INCLUDE_DIR=DIR (a wheel and headers).")
  endif()
endif()
