@echo off
rem Copies covisor to the folder for programs and installs its driver. For administrators.
setlocal
set "FROM=%~dp0"
set "TO=%ProgramFiles%\covisor"

fsutil dirty query "%SystemDrive%" >nul 2>&1
if errorlevel 1 (
    echo covisor: only an administrator can install it: right-click install.cmd, "Run as administrator".
    exit /b 1
)

for %%F in (covisor.exe covisor.sys covisor.inf uninstall.cmd readme.txt license-mit.txt license-apache.txt) do (
    if not exist "%FROM%%%F" (
        echo covisor: %%F is missing beside install.cmd: unpack the whole zip first.
        exit /b 1
    )
)

if not exist "%TO%" mkdir "%TO%"
for %%F in (covisor.exe covisor.sys covisor.inf uninstall.cmd readme.txt license-mit.txt license-apache.txt) do (
    copy /y "%FROM%%%F" "%TO%\%%F" >nul
    if errorlevel 1 (
        echo covisor: %%F cannot be copied to "%TO%": is covisor running? "covisor stop --all" ends it.
        exit /b 1
    )
)

"%TO%\covisor.exe" driver install
if errorlevel 1 exit /b 1
echo covisor is installed in "%TO%".
