# Installs the library, its headers, the package that find_package(jumpout_replay) reads, and the programs; the package
# works from the build tree too. What was installed finds the ONNX Runtime that was given at configure.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package "${CMAKE_INSTALL_LIBDIR}/cmake/jumpout_replay")
set(links "${CMAKE_INSTALL_LIBDIR}/jumpout_replay")

install(TARGETS jumpout_replay EXPORT jumpout_replay ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY include/jumpout DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT jumpout_replay NAMESPACE jumpout:: FILE jumpout_replayTargets.cmake DESTINATION "${package}")
export(EXPORT jumpout_replay NAMESPACE jumpout:: FILE "${CMAKE_CURRENT_BINARY_DIR}/jumpout_replayTargets.cmake")
install(FILES cmake/Findonnxruntime.cmake DESTINATION "${package}")
file(COPY cmake/Findonnxruntime.cmake DESTINATION "${CMAKE_CURRENT_BINARY_DIR}")
write_basic_package_version_file("${CMAKE_CURRENT_BINARY_DIR}/jumpout_replayConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/jumpout_replayConfigVersion.cmake" DESTINATION "${package}")

# The package looks for ONNX Runtime with ONNX Runtime's own package, if that is how it was found here, or takes the
# library at its place. Of a wheel's library the names that linkers and loaders look for are links in the build tree,
# which may go away: they are installed too.
foreach(property LOCATION IMPLIB)
  get_target_property(JUMPOUT_ONNXRUNTIME_${property} onnxruntime::onnxruntime IMPORTED_${property})
  if(NOT JUMPOUT_ONNXRUNTIME_${property})
    set(JUMPOUT_ONNXRUNTIME_${property} "")
  endif()
endforeach()
configure_package_config_file(cmake/jumpout_replayConfig.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/jumpout_replayConfig.cmake"
  INSTALL_PREFIX "${CMAKE_CURRENT_BINARY_DIR}" INSTALL_DESTINATION "${CMAKE_CURRENT_BINARY_DIR}"
  PATH_VARS JUMPOUT_ONNXRUNTIME_LOCATION)
set(rpath "$<TARGET_FILE_DIR:onnxruntime::onnxruntime>")
if(ONNXRUNTIME_LINKS)
  install(DIRECTORY "${ONNXRUNTIME_LINKS}/" DESTINATION "${links}")
  get_filename_component(name "${JUMPOUT_ONNXRUNTIME_LOCATION}" NAME)
  set(JUMPOUT_ONNXRUNTIME_LOCATION "${links}/${name}")
  file(RELATIVE_PATH rpath "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_PREFIX}/${links}")
  set(rpath "$<IF:$<PLATFORM_ID:Darwin>,@loader_path,$ORIGIN>/${rpath}")
endif()
configure_package_config_file(cmake/jumpout_replayConfig.cmake.in
  "${CMAKE_CURRENT_BINARY_DIR}/installed/jumpout_replayConfig.cmake"
  INSTALL_DESTINATION "${package}" PATH_VARS JUMPOUT_ONNXRUNTIME_LOCATION)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/installed/jumpout_replayConfig.cmake" DESTINATION "${package}")

if(JUMPOUT_REPLAY_PROGRAMS)
  set_target_properties(jumpout-replay jumpout-load PROPERTIES INSTALL_RPATH "${rpath}")
  install(TARGETS jumpout-replay jumpout-load RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  if(WIN32) # which has no RUNPATH, and looks in the program's folder first
    install(FILES "$<TARGET_FILE:onnxruntime::onnxruntime>" DESTINATION "${CMAKE_INSTALL_BINDIR}")
  endif()
endif()
