// Package bundle carries the executables that Knarr cannot link in: runc,
// containerd's shim, CNI plugins, nft, and the pause image.
//
// They travel as one archive, which cmd/knarr-bundle builds and package pack
// writes, and are unpacked once into a folder named after their contents.
package bundle
