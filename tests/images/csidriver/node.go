package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}

func (d *driver) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	for _, can := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
	} {
		resp.Capabilities = append(resp.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: can}},
		})
	}
	return resp, nil
}

// NodeStageVolume leads a loop device to the file of a volume that is one.
func (d *driver) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	resp := &csi.NodeStageVolumeResponse{}
	if req.GetVolumeCapability().GetBlock() == nil {
		return resp, nil
	}
	file := d.volume(req.GetVolumeId())
	if _, err := loopOf(file); err == nil {
		return resp, nil
	}
	return resp, run(ctx, "losetup", "-f", file)
}

func (d *driver) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	resp := &csi.NodeUnstageVolumeResponse{}
	if dev, err := loopOf(d.volume(req.GetVolumeId())); err == nil {
		return resp, run(ctx, "losetup", "-d", dev)
	}
	return resp, nil
}

// NodePublishVolume shows the volume where a pod looks for it. A volume that
// lives as long as its pod is made here.
func (d *driver) NodePublishVolume(_ context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	source, target := d.volume(req.GetVolumeId()), req.GetTargetPath()
	var err error
	switch {
	case req.GetVolumeCapability().GetBlock() != nil:
		if source, err = loopOf(source); err == nil {
			err = touch(target)
		}
	case req.GetVolumeContext()["csi.storage.k8s.io/ephemeral"] == "true":
		err = os.MkdirAll(source, 0o777)
		fallthrough
	default:
		err = errors.Join(err, os.MkdirAll(target, 0o750))
	}
	if err == nil {
		err = bind(source, target, req.GetReadonly())
	}
	return &csi.NodePublishVolumeResponse{}, err
}

func touch(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func bind(source, target string, readOnly bool) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show %s at %s: %w", source, target, err)
	}
	if !readOnly {
		return nil
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func (d *driver) NodeUnpublishVolume(_ context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	resp := &csi.NodeUnpublishVolumeResponse{}
	if err := unix.Unmount(req.GetTargetPath(), 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.RemoveAll(req.GetTargetPath()); err != nil {
		return nil, err
	}
	// The kubelet, not the provisioner, named those of a pod.
	if strings.HasPrefix(req.GetVolumeId(), "csi-") {
		return resp, os.RemoveAll(d.volume(req.GetVolumeId()))
	}
	return resp, nil
}

func (d *driver) NodeExpandVolume(_ context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	return &csi.NodeExpandVolumeResponse{CapacityBytes: req.GetCapacityRange().GetRequiredBytes()}, nil
}

// loopOf is the loop device that leads to a file.
func loopOf(file string) (string, error) {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return "", err
	}
	for _, b := range backing {
		if path, err := os.ReadFile(b); err == nil && strings.TrimSpace(string(path)) == file {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(b))), nil
		}
	}
	return "", fmt.Errorf("no loop device leads to %s", file)
}
