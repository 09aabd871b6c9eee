//go:build linux

package api

import (
	"github.com/kilnhq/kiln/api/v1alpha1"
	"github.com/kilnhq/kiln/machine/api/role"
)

// A rule says who may call a verb.
type rule struct {
	least       role.Role
	maintenance bool // also anybody, while the node waits for its configuration
}

// rules has every verb that may be called. What is not in it is refused.
func rules() map[string]rule {
	return map[string]rule{
		v1alpha1.Node_Version_FullMethodName:        {role.Reader, true},
		v1alpha1.Node_Health_FullMethodName:         {role.Reader, false},
		v1alpha1.Node_Services_FullMethodName:       {role.Reader, false},
		v1alpha1.Node_ServiceControl_FullMethodName: {role.Operator, false},
		v1alpha1.Node_Logs_FullMethodName:           {role.Reader, false},
		v1alpha1.Node_Dmesg_FullMethodName:          {role.Reader, false},
		v1alpha1.Node_Events_FullMethodName:         {role.Reader, false},
		v1alpha1.Node_Processes_FullMethodName:      {role.Reader, false},
		v1alpha1.Node_Containers_FullMethodName:     {role.Reader, false},
		v1alpha1.Node_Images_FullMethodName:         {role.Reader, false},
		v1alpha1.Node_Stats_FullMethodName:          {role.Reader, false},
		v1alpha1.Node_Memory_FullMethodName:         {role.Reader, false},
		v1alpha1.Node_Mounts_FullMethodName:         {role.Reader, false},
		v1alpha1.Node_Disks_FullMethodName:          {role.Reader, true},
		v1alpha1.Node_Modules_FullMethodName:        {role.Reader, false},
		v1alpha1.Node_Extensions_FullMethodName:     {role.Reader, false},
		v1alpha1.Node_Hardening_FullMethodName:      {role.Reader, false},
		v1alpha1.Node_ConfigGet_FullMethodName:      {role.Reader, false},
		v1alpha1.Node_ConfigApply_FullMethodName:    {role.Admin, true},
		v1alpha1.Node_MetaList_FullMethodName:       {role.Reader, false},
		v1alpha1.Node_MetaSet_FullMethodName:        {role.Admin, false},
		v1alpha1.Node_MetaDelete_FullMethodName:     {role.Admin, false},
		v1alpha1.Node_Kubeconfig_FullMethodName:     {role.Admin, false},
		v1alpha1.Node_Upgrade_FullMethodName:        {role.Admin, false},
		v1alpha1.Node_Rollback_FullMethodName:       {role.Admin, false},
		v1alpha1.Node_Reset_FullMethodName:          {role.Admin, false},
		v1alpha1.Node_Reboot_FullMethodName:         {role.Operator, false},
		v1alpha1.Node_Shutdown_FullMethodName:       {role.Operator, false},
		v1alpha1.Node_ReadFile_FullMethodName:       {role.Reader, false},
		v1alpha1.Node_ListDirectory_FullMethodName:  {role.Reader, false},
	}
}
