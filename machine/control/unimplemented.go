//go:build linux

package control

import (
	"context"
	"io"

	"github.com/kilnhq/kiln/kernel/hardening"
)

// Unimplemented is a Node that can do nothing. What implements a part of Node
// embeds it.
type Unimplemented struct{}

var _ Node = Unimplemented{}

func (Unimplemented) Identities(context.Context, func(Identity) error) error {
	return ErrUnimplemented
}

func (Unimplemented) Version(context.Context) (Version, error) {
	return Version{}, ErrUnimplemented
}

func (Unimplemented) Health(context.Context) (Health, error) {
	return Health{}, ErrUnimplemented
}

func (Unimplemented) Services(context.Context) (ServiceList, error) {
	return ServiceList{}, ErrUnimplemented
}

func (Unimplemented) ControlService(context.Context, ServiceControl) (ServiceResult, error) {
	return ServiceResult{}, ErrUnimplemented
}

func (Unimplemented) Logs(context.Context, LogsRequest, func(LogLine) error) error {
	return ErrUnimplemented
}

func (Unimplemented) Dmesg(context.Context, TailRequest, func(DmesgLine) error) error {
	return ErrUnimplemented
}

func (Unimplemented) Events(context.Context, TailRequest, func(Event) error) error {
	return ErrUnimplemented
}

func (Unimplemented) Containers(context.Context, NamespaceRequest) (ContainerList, error) {
	return ContainerList{}, ErrUnimplemented
}

func (Unimplemented) Images(context.Context, NamespaceRequest) (ImageList, error) {
	return ImageList{}, ErrUnimplemented
}

func (Unimplemented) Modules(context.Context) (ModuleList, error) {
	return ModuleList{}, ErrUnimplemented
}

func (Unimplemented) Extensions(context.Context) (ExtensionList, error) {
	return ExtensionList{}, ErrUnimplemented
}

func (Unimplemented) Hardening(context.Context) (hardening.Report, error) {
	return hardening.Report{}, ErrUnimplemented
}

func (Unimplemented) Config(context.Context, ConfigRequest) (Config, error) {
	return Config{}, ErrUnimplemented
}

func (Unimplemented) ApplyConfig(context.Context, ConfigChange) (ConfigResult, error) {
	return ConfigResult{}, ErrUnimplemented
}

func (Unimplemented) Meta(context.Context, MetaRequest) (MetaList, error) {
	return MetaList{}, ErrUnimplemented
}

func (Unimplemented) SetMeta(context.Context, MetaList) error {
	return ErrUnimplemented
}

func (Unimplemented) DeleteMeta(context.Context, MetaKeys) (MetaDeleted, error) {
	return MetaDeleted{}, ErrUnimplemented
}

func (Unimplemented) Kubeconfig(context.Context) (Kubeconfig, error) {
	return Kubeconfig{}, ErrUnimplemented
}

func (Unimplemented) Upgrade(context.Context, UpgradeRequest, io.Reader, func(UpgradeProgress) error) error {
	return ErrUnimplemented
}

func (Unimplemented) Rollback(context.Context, RollbackRequest) (RollbackResult, error) {
	return RollbackResult{}, ErrUnimplemented
}

func (Unimplemented) Reset(context.Context, ResetRequest) error {
	return ErrUnimplemented
}

func (Unimplemented) Power(context.Context, PowerRequest) error {
	return ErrUnimplemented
}

func (Unimplemented) ReadFile(context.Context, ReadRequest, func(FileChunk) error) error {
	return ErrUnimplemented
}

func (Unimplemented) ListDirectory(context.Context, ListRequest, func(FileInfo) error) error {
	return ErrUnimplemented
}
